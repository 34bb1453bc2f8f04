"""Training and classifying on many machines: object stores, Ray workers, the registry and the nightly job.

Needs the extra `pipelines`; the method alone is the package `spin`.
"""
