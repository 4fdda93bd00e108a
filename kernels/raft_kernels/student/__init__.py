"""The student's logits at the K ids that its teacher kept, and their gradients.

op.py      the operation: which of three ways it goes, its gradient, its registration with torch.library
dense.py   products with the whole head, a chunk of tokens at a time
sparse.py  on a CPU: the K rows of the head that each token needs
../gpu/student.py  on a GPU: the rows of the head that a tile of neighbouring tokens needs
"""
