// The kernels for CPUs. Compiled once for each instruction set, which CPU_CAPABILITY names (see ../../build.py).
#include "kernel.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace mask2former::cpu::CPU_CAPABILITY {
namespace {

template <typename A>
using Vec = at::vec::Vectorized<A>;
template <typename A>
using Index = at::vec::int_same_size_t<A>;
template <typename A>
constexpr int64_t kWidth = Vec<A>::size();

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Vectors are read from values of any dtype.
template <typename T>
Vec<Accumulator<T>> read(const T* from) {
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    return Vec<T>::loadu(from);
  } else {
    Vec<float> result;
    at::vec::load_to_float<T>(from, result);
    return result;
  }
}

template <typename T>
Vec<Accumulator<T>> read(const T* from, int64_t count) {
  T padded[kWidth<Accumulator<T>>] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return read(padded);
}

// Where a run of points lies among the pixels, and how much of each of its four neighbours it takes.
template <typename A>
struct Points {
  explicit Points(int64_t count) : count(count), padded(round_up(count, kWidth<A>)) {
    xy.resize(2 * padded);
    for (auto* one : {&attention, &height, &width, &across, &down}) {
      one->resize(padded);
    }
    for (auto* one : {&stride, &start}) {
      one->resize(padded);
    }
    for (int corner = 0; corner < 4; ++corner) {
      index[corner].resize(padded);
      weight[corner].resize(padded);
      valid[corner].resize(padded);
    }
  }

  // Points [from, from + n) lie on a level of this size, whose first pixel has the number `first`.
  void set_level(int64_t from, int64_t n, int64_t level_height, int64_t level_width, int64_t first) {
    std::fill_n(height.begin() + from, n, static_cast<A>(level_height));
    std::fill_n(width.begin() + from, n, static_cast<A>(level_width));
    std::fill_n(stride.begin() + from, n, static_cast<Index<A>>(level_width));
    std::fill_n(start.begin() + from, n, static_cast<Index<A>>(first));
  }

  void locate();

  int64_t count, padded;
  std::vector<A> xy, attention;  // input: the locations, x and y in turn, and the attention weights
  std::vector<A> height, width;  // of the level of each point
  std::vector<Index<A>> stride, start;
  std::vector<A> across, down;  // position between the left and right, and the upper and lower neighbours
  // Of the neighbours: upper left, upper right, lower left, lower right.
  std::array<std::vector<Index<A>>, 4> index;  // number of the pixel; of another one where there is none
  std::array<std::vector<A>, 4> weight;        // attention times share; zero where there is no pixel
  std::array<std::vector<A>, 4> valid;         // all bits set, or none where there is no pixel
};

template <typename A>
void Points<A>::locate() {
  using V = Vec<A>;
  using I = Vec<Index<A>>;
  const V zero(0), half(0.5), one(1);
  for (int64_t i = 0; i < padded; i += kWidth<A>) {
    const auto [u, v] = at::vec::deinterleave2(V::loadu(&xy[2 * i]), V::loadu(&xy[2 * i + kWidth<A>]));
    const V h = V::loadu(&height[i]), w = V::loadu(&width[i]);
    V x = u * w - half, y = v * h - half;
    // A location that is not a number is outside, as no comparison with it holds.
    const V inside = (x > zero - one) & (x < w) & (y > zero - one) & (y < h);
    x = V::blendv(zero, x, inside);
    y = V::blendv(zero, y, inside);
    const V x0 = x.floor(), y0 = y.floor(), x1 = x0 + one, y1 = y0 + one;
    const V right = x - x0, below = y - y0;
    right.store(&across[i]);
    below.store(&down[i]);

    const V has_left = (x0 >= zero) & inside, has_right = (x1 < w) & inside;
    const V has_upper = y0 >= zero, has_lower = y1 < h;
    const V a = V::loadu(&attention[i]);
    const V upper = a * (one - below), lower = a * below;
    const std::array<V, 4> masks = {
        has_upper & has_left, has_upper & has_right, has_lower & has_left, has_lower & has_right};
    const std::array<V, 4> shares = {
        upper * (one - right), upper * right, lower * (one - right), lower * right};
    const I line = I::loadu(&stride[i]), first = I::loadu(&start[i]);
    const auto number = [](const V& x) { return at::vec::convert_to_int_of_same_size(x); };
    const I left = number(at::vec::maximum(x0, zero)), other = number(at::vec::minimum(x1, w - one));
    const I top = number(at::vec::maximum(y0, zero)) * line + first;
    const I bottom = number(at::vec::minimum(y1, h - one)) * line + first;
    const std::array<I, 4> pixels = {top + left, top + other, bottom + left, bottom + other};
    for (int corner = 0; corner < 4; ++corner) {
      masks[corner].store(&valid[corner][i]);
      V::blendv(zero, shares[corner], masks[corner]).store(&weight[corner][i]);
      pixels[corner].store(&index[corner][i]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- forward

// Adds up N vectors of the neighbours of points [begin, end); `count` elements where it is not N whole vectors.
template <int N, typename T>
void gather(
    const Points<Accumulator<T>>& points,
    int64_t begin,
    int64_t end,
    const T* value,
    int64_t row,
    Accumulator<T>* sum,
    int64_t count = 0) {
  using A = Accumulator<T>;
  // Two sums, so that an addition need not wait for the one before.
  Vec<A> sums[2][N];
  for (int n = 0; n < N; ++n) {
    sums[0][n] = sums[1][n] = Vec<A>(0);
  }
  for (int64_t i = begin; i < end; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const T* pixel = value + points.index[corner][i] * row;
      const Vec<A> weight(points.weight[corner][i]);
      for (int n = 0; n < N; ++n) {
        const Vec<A> x = count ? read(pixel, count) : read(pixel + n * kWidth<A>);
        sums[corner & 1][n] = at::vec::fmadd(weight, x, sums[corner & 1][n]);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    (sums[0][n] + sums[1][n]).store(sum + n * kWidth<A>);
  }
}

}  // namespace

template <typename T>
void forward(
    const Sizes& z,
    const T* value,
    const Accumulator<T>* locations,
    const Accumulator<T>* weights,
    T* output) {
  using A = Accumulator<T>;
  constexpr int64_t width = kWidth<A>;
  const int64_t per_head = z.L * z.P, per_query = z.M * per_head, row = z.M * z.D;
  // Queries one after the other: neighbours look at the same pixels.
  at::parallel_for(0, z.B * z.Q, 16, [&](int64_t begin, int64_t end) {
    Points<A> points(per_query);
    for (int64_t head = 0; head < z.M; ++head) {
      for (int64_t level = 0, first = 0; level < z.L; ++level) {
        const int64_t height = z.shapes[2 * level], columns = z.shapes[2 * level + 1];
        points.set_level(head * per_head + level * z.P, z.P, height, columns, first);
        first += height * columns;
      }
    }
    std::vector<A> sum(round_up(z.D, width));
    for (int64_t query = begin; query < end; ++query) {
      std::copy_n(locations + 2 * query * per_query, 2 * per_query, points.xy.begin());
      std::copy_n(weights + query * per_query, per_query, points.attention.begin());
      points.locate();
      for (int64_t head = 0; head < z.M; ++head) {
        const T* maps = value + query / z.Q * z.S * row + head * z.D;
        const int64_t from = head * per_head, to = from + per_head;
        int64_t d = 0;
        for (; d + 4 * width <= z.D; d += 4 * width) {
          gather<4>(points, from, to, maps + d, row, &sum[d]);
        }
        for (; d + 2 * width <= z.D; d += 2 * width) {
          gather<2>(points, from, to, maps + d, row, &sum[d]);
        }
        for (; d + width <= z.D; d += width) {
          gather<1>(points, from, to, maps + d, row, &sum[d]);
        }
        if (d < z.D) {
          gather<1>(points, from, to, maps + d, row, &sum[d], z.D - d);
        }
        at::vec::convert(sum.data(), output + query * row + head * z.D, z.D);
      }
    }
  });
}

// --------------------------------------------------------------------------------------------------------- backward

namespace {

template <typename A>
A total(const Vec<A>& x) {
  return at::vec::vec_reduce_all<A>([](const Vec<A>& a, const Vec<A>& b) { return a + b; }, x);
}

// One level of one head, alone in its memory: pixels are next to each other, as whole vectors, and their gradients.
template <typename A>
struct Level {
  Level(int64_t pixels, int64_t head_width)
      : head_width(head_width), vectors(round_up(head_width, kWidth<A>) / kWidth<A>), grad(vectors, Vec<A>(0)),
        value(pixels * vectors, Vec<A>(0)), grad_value(pixels * vectors) {}

  template <typename T>
  void read(const T* from, int64_t pixels, int64_t distance) {
    for (int64_t i = 0; i < pixels; ++i) {
      at::vec::convert(from + i * distance, elements(value, i), head_width);
    }
    std::fill_n(grad_value.begin(), pixels * vectors, Vec<A>(0));
  }

  template <typename T>
  void read_grad(const T* from) {
    at::vec::convert(from, elements(grad, 0), head_width);
  }

  template <typename T>
  void write_grad(T* to, int64_t pixels, int64_t distance) {
    for (int64_t i = 0; i < pixels; ++i) {
      at::vec::convert(static_cast<const A*>(elements(grad_value, i)), to + i * distance, head_width);
    }
  }

  // For one point: adds its share to the gradients of its neighbours; the products of neighbours and gradient are its.
  void scatter(const Points<A>& points, int64_t i, std::array<std::vector<A>, 4>& products) {
    std::array<Vec<A>, 4> sums;
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t pixel = points.index[corner][i] * vectors;
      const Vec<A> weight(points.weight[corner][i]);
      sums[corner] = Vec<A>(0);
      for (int64_t d = 0; d < vectors; ++d) {
        sums[corner] = at::vec::fmadd(grad[d], value[pixel + d], sums[corner]);
        grad_value[pixel + d] = at::vec::fmadd(grad[d], weight, grad_value[pixel + d]);
      }
    }
    for (int corner = 0; corner < 4; ++corner) {
      products[corner][i] = total(sums[corner]);
    }
  }

  int64_t head_width, vectors;  // elements and vectors of a pixel
  std::vector<Vec<A>> grad;     // of the output, for the query in hand
  std::vector<Vec<A>> value, grad_value;

 private:
  A* elements(std::vector<Vec<A>>& rows, int64_t i) {
    return reinterpret_cast<A*>(rows.data() + i * vectors);
  }
};

}  // namespace

template <typename T>
void backward(
    const Sizes& z,
    const T* grad_output,
    const T* value,
    const Accumulator<T>* locations,
    const Accumulator<T>* weights,
    T* grad_value,
    Accumulator<T>* grad_locations,
    Accumulator<T>* grad_weights) {
  using A = Accumulator<T>;
  constexpr int64_t width = kWidth<A>;
  const int64_t row = z.M * z.D, block = std::max<int64_t>(1, 64 / z.P);
  std::vector<int64_t> starts = {0};
  int64_t largest = 0;
  for (int64_t level = 0; level < z.L; ++level) {
    const int64_t pixels = z.shapes[2 * level] * z.shapes[2 * level + 1];
    starts.push_back(starts.back() + pixels);
    largest = std::max(largest, pixels);
  }
  // A level of a head belongs to one thread, which takes the queries in order: sums do not depend on the threads.
  at::parallel_for(0, z.B * z.M * z.L, 1, [&](int64_t begin, int64_t end) {
    Level<A> maps(largest, z.D);
    Points<A> points(block * z.P);
    std::array<std::vector<A>, 4> products;
    for (auto& one : products) {
      one.resize(points.padded);
    }
    std::vector<A> grad_x(points.padded), grad_y(points.padded), grad_weight(points.padded);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (z.M * z.L), m = task / z.L % z.M, l = task % z.L;
      const int64_t height = z.shapes[2 * l], columns = z.shapes[2 * l + 1], pixels = height * columns;
      const int64_t offset = (b * z.S + starts[l]) * row + m * z.D;
      maps.read(value + offset, pixels, row);
      points.set_level(0, points.padded, height, columns, 0);
      for (int64_t q0 = 0; q0 < z.Q; q0 += block) {
        const int64_t queries = std::min(block, z.Q - q0);
        const auto place = [&](int64_t j) { return (((b * z.Q + q0 + j) * z.M + m) * z.L + l) * z.P; };
        for (int64_t j = 0; j < queries; ++j) {
          std::copy_n(locations + 2 * place(j), 2 * z.P, &points.xy[2 * j * z.P]);
          std::copy_n(weights + place(j), z.P, &points.attention[j * z.P]);
        }
        points.locate();
        for (int64_t j = 0; j < queries; ++j) {
          maps.read_grad(grad_output + (b * z.Q + q0 + j) * row + m * z.D);
          for (int64_t i = j * z.P; i < (j + 1) * z.P; ++i) {
            maps.scatter(points, i, products);
          }
        }
        // The derivatives of the bilinear shares, for all points of the block.
        const Vec<A> one(1), h(static_cast<A>(height)), w(static_cast<A>(columns));
        for (int64_t i = 0; i < points.padded; i += width) {
          std::array<Vec<A>, 4> p;
          for (int corner = 0; corner < 4; ++corner) {
            p[corner] = Vec<A>::loadu(&products[corner][i]) & Vec<A>::loadu(&points.valid[corner][i]);
          }
          const Vec<A> right = Vec<A>::loadu(&points.across[i]), below = Vec<A>::loadu(&points.down[i]);
          const Vec<A> left = one - right, above = one - below, a = Vec<A>::loadu(&points.attention[i]);
          (above * (left * p[0] + right * p[1]) + below * (left * p[2] + right * p[3])).store(&grad_weight[i]);
          (a * w * (above * (p[1] - p[0]) + below * (p[3] - p[2]))).store(&grad_x[i]);
          (a * h * (left * (p[2] - p[0]) + right * (p[3] - p[1]))).store(&grad_y[i]);
        }
        for (int64_t j = 0; j < queries; ++j) {
          for (int64_t i = 0; i < z.P; ++i) {
            grad_weights[place(j) + i] = grad_weight[j * z.P + i];
            grad_locations[2 * (place(j) + i)] = grad_x[j * z.P + i];
            grad_locations[2 * (place(j) + i) + 1] = grad_y[j * z.P + i];
          }
        }
      }
      maps.write_grad(grad_value + offset, pixels, row);
    }
  });
}

#define MASK2FORMER_INSTANTIATE(T)                                                                              \
  template void forward<T>(const Sizes&, const T*, const Accumulator<T>*, const Accumulator<T>*, T*);          \
  template void backward<T>(                                                                                    \
      const Sizes&, const T*, const T*, const Accumulator<T>*, const Accumulator<T>*, T*, Accumulator<T>*,      \
      Accumulator<T>*);

MASK2FORMER_INSTANTIATE(float)
MASK2FORMER_INSTANTIATE(double)
MASK2FORMER_INSTANTIATE(c10::BFloat16)
MASK2FORMER_INSTANTIATE(c10::Half)

}  // namespace mask2former::cpu::CPU_CAPABILITY
