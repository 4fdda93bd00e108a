"""Import this before Liger on a machine without a GPU: it runs Liger's kernels in Triton's interpreter.

Liger has only Triton kernels. TRITON_INTERPRET=1 runs them in NumPy, slowly, with two gaps that are closed here: float
arguments stay Python floats, while the compiler makes them fp32 scalars, and libdevice functions are empty.
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
# A lambda, because the interpreter replaces tl.rsqrt while a kernel runs.
liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.rsqrt(x)
