"""CUDA kernels: the names and signatures of `minitl.kernels.cpu`, on CuPy arrays.

Activations are float32, float64 or bfloat16 (held as uint16); everything else is float32, or float64
beside float64. Functions start kernels on CuPy's current stream and return at once.
"""

from minitl.kernels.cuda.attack import attack_start, attack_step
from minitl.kernels.cuda.avgpool import (
    adaptive_avgpool2d_dx,
    adaptive_avgpool2d_forward,
    avgpool2d_dx,
    avgpool2d_forward,
)
from minitl.kernels.cuda.batchnorm import (
    batchnorm_apply,
    batchnorm_coefficients,
    batchnorm_dx,
    batchnorm_fold,
    batchnorm_reduce,
    batchnorm_statistics,
)
from minitl.kernels.cuda.batchnorm_relu_maxpool import (
    batchnorm_relu_maxpool_dx,
    batchnorm_relu_maxpool_forward,
)
from minitl.kernels.cuda.compiler import compile_seconds, on_first_compile
from minitl.kernels.cuda.conv2d import (
    conv2d_db,
    conv2d_dw,
    conv2d_dx,
    conv2d_forward,
    conv2d_scale_shift_forward,
    conv2d_statistics_forward,
    set_precision,
)
from minitl.kernels.cuda.elementwise import (
    add_forward,
    cast,
    concat_dx,
    concat_forward,
    dropout_dx,
    dropout_forward,
    relu_dx,
    relu_forward,
    scale_forward,
)
from minitl.kernels.cuda.image import normalize_images
from minitl.kernels.cuda.linear import linear_db, linear_dw, linear_dx, linear_forward
from minitl.kernels.cuda.loss import (
    mean_squared_error_dx,
    mean_squared_error_forward,
    sigmoid_binary_cross_entropy_dx,
    sigmoid_binary_cross_entropy_forward,
    softmax_cross_entropy_dx,
    softmax_cross_entropy_forward,
)
from minitl.kernels.cuda.mixing import cutmix_forward, mixup_forward
from minitl.kernels.cuda.optim import adam_step, average_step, clip_norm, sgd_step
from minitl.kernels.cuda.pool import (
    global_avgpool2d_dx,
    global_avgpool2d_forward,
    maxpool2d_dx,
    maxpool2d_forward,
)
from minitl.kernels.cuda.runtime import release_memory
from minitl.kernels.cuda.settings import set_conv_algorithm, set_threads

# Whether `conv2d_dx` adds `rest` and keeps to what is `positive` without a pass of its own.
FUSES_DX = True

__all__ = [
    "adam_step",
    "adaptive_avgpool2d_dx",
    "adaptive_avgpool2d_forward",
    "add_forward",
    "attack_start",
    "attack_step",
    "average_step",
    "avgpool2d_dx",
    "avgpool2d_forward",
    "batchnorm_apply",
    "batchnorm_coefficients",
    "batchnorm_dx",
    "batchnorm_fold",
    "batchnorm_reduce",
    "batchnorm_relu_maxpool_dx",
    "batchnorm_relu_maxpool_forward",
    "batchnorm_statistics",
    "cast",
    "clip_norm",
    "compile_seconds",
    "concat_dx",
    "concat_forward",
    "conv2d_db",
    "conv2d_dw",
    "conv2d_dx",
    "conv2d_forward",
    "conv2d_scale_shift_forward",
    "conv2d_statistics_forward",
    "cutmix_forward",
    "dropout_dx",
    "dropout_forward",
    "global_avgpool2d_dx",
    "global_avgpool2d_forward",
    "linear_db",
    "linear_dw",
    "linear_dx",
    "linear_forward",
    "maxpool2d_dx",
    "maxpool2d_forward",
    "mean_squared_error_dx",
    "mean_squared_error_forward",
    "mixup_forward",
    "normalize_images",
    "on_first_compile",
    "release_memory",
    "relu_dx",
    "relu_forward",
    "scale_forward",
    "set_conv_algorithm",
    "set_precision",
    "set_threads",
    "sgd_step",
    "sigmoid_binary_cross_entropy_dx",
    "sigmoid_binary_cross_entropy_forward",
    "softmax_cross_entropy_dx",
    "softmax_cross_entropy_forward",
]
