// What kernel.cpp computes, once for each instruction set that it is compiled for: on bare pointers to contiguous arrays.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mask2former::cpu {

struct Sizes {
  int64_t B, S, M, D, Q, L, P;
  const int64_t* shapes;  // height and width of each level
};

// Sums, locations and weights are double beside double values and float beside all others.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

#define MASK2FORMER_DECLARE_KERNELS(CAPABILITY)                                                      \
  namespace CAPABILITY {                                                                             \
  template <typename T>                                                                              \
  void forward(                                                                                      \
      const Sizes& sizes,                                                                            \
      const T* value,                                                                                \
      const Accumulator<T>* locations,                                                               \
      const Accumulator<T>* weights,                                                                 \
      T* output);                                                                                    \
  template <typename T>                                                                              \
  void backward(                                                                                     \
      const Sizes& sizes,                                                                            \
      const T* grad_output,                                                                          \
      const T* value,                                                                                \
      const Accumulator<T>* locations,                                                               \
      const Accumulator<T>* weights,                                                                 \
      T* grad_value,                                                                                 \
      Accumulator<T>* grad_locations,                                                                \
      Accumulator<T>* grad_weights);                                                                 \
  }

MASK2FORMER_DECLARE_KERNELS(DEFAULT)
MASK2FORMER_DECLARE_KERNELS(AVX2)
MASK2FORMER_DECLARE_KERNELS(AVX512)

}  // namespace mask2former::cpu
