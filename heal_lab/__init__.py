"""heal_lab: what measures the method, and what made the small worlds. `heal_ref` never imports it (a test looks).

    the world       clock_corpus (what the pair was taught), pair (the tiny teacher and student from nothing)
    evidence        evidence (GEAR: every cut and hint), evidence_pure (PURE: every reading and plain score), scores (AUROC)
    the experiment  experiment (arms and seeds), compare (paired differences), figures (its figures)
    speed           bench (ratios against what people use today)
    command line    __main__ (experiment, evidence, build-pair, bench)
"""
