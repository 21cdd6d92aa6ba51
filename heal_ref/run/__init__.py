"""A resumable run of the whole method: pipeline, plan, sources, report."""
