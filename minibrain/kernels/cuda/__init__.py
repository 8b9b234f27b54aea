"""Twins in CUDA C++: for each module of functional a launcher of its name here, and a .cu file.

Convolution has several, of which conv_tensor_core.py asks the first three, in this order:

    conv_planes     3x3x3 and 3x3 taps that keep the size; the weight gradient's kernel in a file
                    of its own, conv_planes_gradient.cu
    conv_tiles      other shapes, with many channels
    conv_pointwise  one tap and few outputs: heads
    conv            everything else, and all that is not bfloat16

loader.py compiles the sources and launches kernels, graph.py records a whole step.
"""
