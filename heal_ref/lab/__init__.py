"""The laboratory: what measures the method, and what made the small world. Nothing of the method imports it (a test looks).

    the world       clock_corpus (what the pair was taught), pair (the tiny teacher and student from nothing)
    evidence        evidence (GEAR: every cut and hint), evidence_pure (PURE: every reading and plain score), scores (AUROC)
    the experiment  experiment (arms and seeds), compare (paired differences), plots_arms (its figures)
    speed           bench (ratios against what people use today)
    command line    commands (experiment, build-pair, evidence, bench)
"""
