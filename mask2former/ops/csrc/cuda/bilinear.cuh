// Bilinear interpolation and its gradients, as the product of two linear interpolations.
//
// Everything here runs on the host too, where the tests check it.
#pragma once

#include <c10/macros/Macros.h>

#include <cmath>

namespace mask2former::cuda {

struct Level {
  int height;
  int width;
  int start;  // index of the level's first pixel among the pixels of all levels
};

// The two neighbouring cells, along one axis of a map, between which a location falls.
template <typename T>
struct Axis {
  bool inside;  // whether at least one of the cells belongs to the map
  int cell[2];  // clamped to the map, so that both can be read whenever `inside` is true
  T share[2];   // zero for a cell that does not belong to the map
  T slope[2];   // derivatives of `share` by the location
};

// `location` is 0 at the map's one edge and 1 at the other; cell i has its centre at (i + 0.5) / size.
template <typename T>
C10_HOST_DEVICE inline Axis<T> interpolate(T location, int size) {
  Axis<T> axis{};
  const T position = location * size - T(0.5);
  axis.inside = position >= T(-1) && position < T(size);  // false for NaN; true makes the conversion below safe
  if (axis.inside) {
    const T floor = std::floor(position);
    const T fraction = position - floor;
    const int lower = static_cast<int>(floor);
    const bool has_lower = lower >= 0;
    const bool has_upper = lower + 1 < size;
    axis.cell[0] = has_lower ? lower : 0;
    axis.cell[1] = has_upper ? lower + 1 : size - 1;
    axis.share[0] = has_lower ? 1 - fraction : T(0);
    axis.share[1] = has_upper ? fraction : T(0);
    axis.slope[0] = has_lower ? T(-size) : T(0);
    axis.slope[1] = has_upper ? T(size) : T(0);
  }
  return axis;
}

// The four pixels around a point, left before right and upper before lower, and what each adds to the output.
template <typename T>
struct alignas(16) Corners {
  int pixel[4];  // in 0 ... S - 1; the first is -1 if the point is outside the map and none is to be read
  T share[4];    // bilinear share times attention weight
};

template <typename T>
struct Point {
  Axis<T> x;
  Axis<T> y;
  T weight;
};

template <typename T>
C10_HOST_DEVICE inline Point<T> locate(T x, T y, T weight, const Level& level) {
  return {interpolate(x, level.width), interpolate(y, level.height), weight};
}

template <typename T>
C10_HOST_DEVICE inline Corners<T> corners(const Point<T>& point, const Level& level) {
  Corners<T> corners{};
  if (!(point.x.inside && point.y.inside)) {
    corners.pixel[0] = -1;
    return corners;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = level.start + point.y.cell[j] * level.width;
    const T share = point.weight * point.y.share[j];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      corners.pixel[2 * j + i] = row + point.x.cell[i];
      corners.share[2 * j + i] = share * point.x.share[i];
    }
  }
  return corners;
}

template <typename T>
struct PointGradient {
  T x;
  T y;
  T weight;
};

// `dots` holds, for each corner, the product of the output's gradient with the pixel's value, summed over channels.
template <typename T>
C10_HOST_DEVICE inline PointGradient<T> gradient(const Point<T>& point, const T (&dots)[4]) {
  PointGradient<T> gradient{};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const T along = point.x.share[0] * dots[2 * j] + point.x.share[1] * dots[2 * j + 1];
    const T slope = point.x.slope[0] * dots[2 * j] + point.x.slope[1] * dots[2 * j + 1];
    gradient.x += point.weight * point.y.share[j] * slope;
    gradient.y += point.weight * point.y.slope[j] * along;
    gradient.weight += point.y.share[j] * along;
  }
  return gradient;
}

}  // namespace mask2former::cuda
