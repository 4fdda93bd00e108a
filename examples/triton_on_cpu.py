"""Import this before Liger on a machine without a GPU: Triton's interpreter, with what Liger's kernels miss in it.

Liger has Triton kernels alone. TRITON_INTERPRET=1 runs such kernels in NumPy, slowly, and has two gaps for Liger:
a float argument stays a Python float, where the compiler makes an fp32 scalar of it, and libdevice functions are empty.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before Liger is imported

import liger_kernel.ops.rms_norm
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._implicit_cvt


def _convert_floats_too(argument):
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
    return _convert(argument)


interpreter._implicit_cvt = _convert_floats_too
# Not tl.rsqrt itself: the interpreter replaces it while a kernel runs.
liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.rsqrt(x)
