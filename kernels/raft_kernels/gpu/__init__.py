"""The Triton backend, for bf16, fp16 and fp32 on a GPU; on CPU tensors under TRITON_INTERPRET=1, for tests.

    select.py      the K largest of each row of logits, and its log-partition
    topk.py        the teacher: a product, then the selection
    project.py     hidden @ weight.T with the maxima of groups of ids in the same pass, where that beats cuBLAS
    union.py       which head rows a tile of tokens needs, which tokens a tile of ids needs
    scatter.py     gradients of logits as an operand of these products, written only where it is read
    student.py     products of a tile with the rows that it needs: student logits, and both gradients
    divergence.py  softmaxes, divergence and its gradient, one pass over [N, K]
    tiles.py       tile sizes, one typed class a kernel, by dtype and chip

Imported only when it is chosen (dispatch.py): importing triton costs, and fixes whether kernels are interpreted.
"""
