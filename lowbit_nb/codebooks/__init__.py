"""Codebooks: short vectors that stand for several weights at once.

    codebook            how a layer is cut into pieces, which columns share a codebook, what that costs
    kmeans, norming     where codebooks come from; columns brought to one scale, the metric with them
    vectors, refine     the nearest vector as a rounder for `feedback`; codebooks refitted, pieces reassigned
    walk                the inner loop of both: some columns, one after the other
    vector, across      stored forms: vectors along the outputs, as in VPTQ, and along the inputs
    centroids           what can be learned afterwards: codebooks, scales, norms
    vptq_format, vptq_files   the checkpoint layout of the vptq package
"""
