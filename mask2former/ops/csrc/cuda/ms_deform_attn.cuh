// What one group of lanes does for one query and head, in the forward and the backward pass.
//
// A group is a few lanes of a warp. Each lane owns N neighbouring channels, the 16 bytes of one load wherever the
// head width allows. The points are located by one lane each and then read by all: locations and weights are loaded
// once, and neighbouring lanes load neighbouring ones.
//
// A group offers `lane`, `width`, and
//   publish(corners)     give the other lanes this lane's point; every lane calls it
//   read(lane)           the corners that a lane has published last
//   sum(x)               the sum over the lanes, given to each of them; every lane calls it
//   add(address, values) add N values to memory that other groups add to
// so that the same code runs on the host, where the tests check it against the definition.
//
// Letters: B batch, S positions of all levels, M heads, D head width, Q queries, L levels, P points.
#pragma once

#include <c10/macros/Macros.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bilinear.cuh"

namespace mask2former::cuda {

constexpr int kMaxLevels = 16;

struct Problem {
  int positions;  // S
  int queries;    // Q
  int heads;      // M
  int channels;   // D
  int points;     // L * P
  int points_per_level;
  Level levels[kMaxLevels];
};

// Sums are taken in at least single precision.
template <typename scalar_t>
using accumulate_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T data[N];
};

template <int N, typename T>
C10_HOST_DEVICE inline Vector<T, N> load(const T* address) {
  return *reinterpret_cast<const Vector<T, N>*>(address);
}

// Converts to the type of the sums.
template <typename acc_t, typename T, int N>
C10_HOST_DEVICE inline void widen(const Vector<T, N>& values, acc_t (&result)[N]) {
  if constexpr (std::is_same_v<T, c10::BFloat16> && N % 2 == 0) {
    // A bfloat16 is the upper half of a float: one instruction each when taken from whole words.
    uint32_t words[N / 2];
    std::memcpy(words, values.data, sizeof(words));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      const uint32_t halves[2] = {words[n / 2] << 16, words[n / 2] & 0xffff0000u};  // little-endian
      std::memcpy(result + n, halves, sizeof(halves));
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      result[n] = static_cast<acc_t>(values.data[n]);
    }
  }
}

// The address of a pixel, given that of pixel 0: one multiply-add of 32 by 32 to 64 bits on the device.
template <typename T>
C10_HOST_DEVICE inline T* at_pixel(T* first, int pixel, uint32_t stride_in_bytes) {
  using byte_t = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(
      reinterpret_cast<byte_t*>(first) + static_cast<uint64_t>(static_cast<uint32_t>(pixel)) * stride_in_bytes);
}

// Offsets, in elements, of what belongs to query and head `item` (of Q * M) of image `batch`.
struct Offsets {
  int64_t value;   // in (B, S, M, D): channel 0 of the head at position 0
  int64_t output;  // in (B, Q, M, D)
  int64_t points;  // in (B, Q, M, L, P)
};

C10_HOST_DEVICE inline Offsets offsets(const Problem& problem, int batch, int item) {
  const int head = item % problem.heads;
  const int64_t row = static_cast<int64_t>(batch) * problem.queries * problem.heads + item;
  return {
      (static_cast<int64_t>(batch) * problem.positions * problem.heads + head) * problem.channels,
      row * problem.channels,
      row * problem.points,
  };
}

template <typename acc_t, typename weight_t>
C10_HOST_DEVICE inline Point<acc_t> locate(
    const Problem& problem, int point, const acc_t* locations, const weight_t* weights) {
  const Vector<acc_t, 2> location = load<2>(locations + 2 * point);
  return locate(
      location.data[0],
      location.data[1],
      static_cast<acc_t>(weights[point]),
      problem.levels[point / problem.points_per_level]);
}

template <int N, typename scalar_t, typename weight_t, typename Group>
C10_HOST_DEVICE inline void forward(
    Group& group,
    const Problem& problem,
    int batch,
    int item,
    const scalar_t* value,
    const accumulate_t<scalar_t>* locations,
    const weight_t* weights,
    scalar_t* output) {
  using acc_t = accumulate_t<scalar_t>;
  const Offsets at = offsets(problem, batch, item);
  const uint32_t stride = static_cast<uint32_t>(problem.heads * problem.channels) * sizeof(scalar_t);
  locations += 2 * at.points;
  weights += at.points;

  // One turn unless D is larger than what the lanes hold at a time.
  for (int start = 0; start < problem.channels; start += group.width * N) {
    const int channel = start + group.lane * N;
    const bool has_channels = channel < problem.channels;
    const scalar_t* const channels = value + at.value + channel;
    acc_t sums[N] = {};
    for (int first = 0; first < problem.points; first += group.width) {
      const int count = problem.points - first < group.width ? problem.points - first : group.width;
      Corners<acc_t> own{};
      if (group.lane < count) {
        const int point = first + group.lane;
        own = corners(
            locate(problem, point, locations, weights), problem.levels[point / problem.points_per_level]);
      }
      group.publish(own);
      for (int k = 0; k < count; ++k) {
        const Corners<acc_t> corners = group.read(k);
        if (corners.pixel[0] < 0 || !has_channels) {
          continue;
        }
        Vector<scalar_t, N> pixels[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          pixels[c] = load<N>(at_pixel(channels, corners.pixel[c], stride));
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          acc_t pixel[N];
          widen(pixels[c], pixel);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            sums[n] += corners.share[c] * pixel[n];
          }
        }
      }
    }
    if (has_channels) {
      Vector<scalar_t, N> result;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        result.data[n] = static_cast<scalar_t>(sums[n]);
      }
      *reinterpret_cast<Vector<scalar_t, N>*>(output + at.output + channel) = result;
    }
  }
}

// `grad_value` is added to; `grad_locations` and `grad_weights` are written.
template <int N, typename scalar_t, typename weight_t, typename Group>
C10_HOST_DEVICE inline void backward(
    Group& group,
    const Problem& problem,
    int batch,
    int item,
    const scalar_t* grad_output,
    const scalar_t* value,
    const accumulate_t<scalar_t>* locations,
    const weight_t* weights,
    accumulate_t<scalar_t>* grad_value,
    accumulate_t<scalar_t>* grad_locations,
    weight_t* grad_weights) {
  using acc_t = accumulate_t<scalar_t>;
  const Offsets at = offsets(problem, batch, item);
  const uint32_t stride = static_cast<uint32_t>(problem.heads * problem.channels) * sizeof(scalar_t);
  const uint32_t grad_stride = static_cast<uint32_t>(problem.heads * problem.channels) * sizeof(acc_t);

  for (int first = 0; first < problem.points; first += group.width) {
    const int count = problem.points - first < group.width ? problem.points - first : group.width;
    const int own = first + group.lane;
    Point<acc_t> own_point{};
    Corners<acc_t> own_corners{};
    if (group.lane < count) {
      own_point = locate(problem, own, locations + 2 * at.points, weights + at.points);
      own_corners = corners(own_point, problem.levels[own / problem.points_per_level]);
    }
    acc_t own_dots[4] = {};
    group.publish(own_corners);
    for (int k = 0; k < count; ++k) {
      const Corners<acc_t> corners = group.read(k);
      acc_t dots[4] = {};
      if (corners.pixel[0] >= 0) {
        for (int channel = group.lane * N; channel < problem.channels; channel += group.width * N) {
          acc_t grad[N];
          widen(load<N>(grad_output + at.output + channel), grad);
          Vector<scalar_t, N> pixels[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            pixels[c] = load<N>(at_pixel(value + at.value + channel, corners.pixel[c], stride));
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            acc_t pixel[N];
            widen(pixels[c], pixel);
            acc_t grad_pixel[N];
#pragma unroll
            for (int n = 0; n < N; ++n) {
              dots[c] += grad[n] * pixel[n];
              grad_pixel[n] = grad[n] * corners.share[c];
            }
            if (corners.share[c] != 0) {  // corners beyond the edge among others
              group.add(at_pixel(grad_value + at.value + channel, corners.pixel[c], grad_stride), grad_pixel);
            }
          }
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const acc_t total = group.sum(dots[c]);
        own_dots[c] = k == group.lane ? total : own_dots[c];
      }
    }
    if (group.lane < count) {
      const PointGradient<acc_t> result = gradient(own_point, own_dots);
      *reinterpret_cast<Vector<acc_t, 2>*>(grad_locations + 2 * (at.points + own)) = {{result.x, result.y}};
      grad_weights[at.points + own] = static_cast<weight_t>(result.weight);
    }
  }
}

}  // namespace mask2former::cuda
