"""Generated C++ kernels."""
