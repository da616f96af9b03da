// y[m][n] = sum_k x[m][k] * w[n][k] + b[n], for the few rows m of a decoding pass and weights as PyTorch keeps them.
//
// Two properties matter here. The weights are read once, in their own layout, whatever the number of rows: a pass over
// eight tokens costs little more than one over a single token, and no second copy of the weights is kept. And every
// output is summed in one fixed order, 16 partial sums over k and then a tree, whatever stands beside it: the bits of
// a row do not depend on the width of the pass.

#include "lanes.h"

namespace {

constexpr long ROWS_AT_ONCE = 8;     // rows of x whose sums fit the registers
constexpr long WEIGHTS_AT_ONCE = 48; // rows of w that stay in the cache while all rows of x pass over them

// M rows of x (float, padded with zeros to a multiple of LANES) against N rows of w.
template <int M, int N, class T>
inline void tile(const float *x, long padded, const T *w, long k, float (&out)[M][N]) {
  Floats sums[M][N] = {};
  long whole = k / LANES * LANES;
  for (long i = 0; i < whole; i += LANES) {
    Floats weights[N];
    for (int n = 0; n < N; n++) weights[n] = load(w + n * k + i);
    for (int m = 0; m < M; m++) {
      Floats values = load(x + m * padded + i);
      for (int n = 0; n < N; n++) sums[m][n] += values * weights[n];
    }
  }
  if (whole < k)
    for (int n = 0; n < N; n++) {
      T rest[LANES] = {};
      std::memcpy(rest, w + n * k + whole, (k - whole) * sizeof(T));
      Floats weights = load(rest);
      for (int m = 0; m < M; m++) sums[m][n] += load(x + m * padded + whole) * weights;
    }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) out[m][n] = sum(sums[m][n]);
}

template <class T> struct Problem {
  const float *x; // [rows][padded]
  const T *w;     // [n][k]
  const T *b;     // [n] or null
  T *y;           // [rows][n]
  long padded, n, k;
};

template <int M, int N, class T> long strip(const Problem<T> &p, long row, long from, long to) {
  float out[M][N];
  for (; from + N <= to; from += N) {
    tile<M, N, T>(p.x + row * p.padded, p.padded, p.w + from * p.k, p.k, out);
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++)
        narrow(out[m][n] + (p.b ? widen(p.b[from + n]) : 0.0f), p.y + (row + m) * p.n + from + n);
  }
  return from;
}

// N shrinks as M grows, so that the M * N sums stay in registers.
template <int M, int N, class T> void block(const Problem<T> &p, long row, long from, long to) {
  from = strip<M, N, T>(p, row, from, to);
  strip<M, 1, T>(p, row, from, to);
}

template <class T> void rows(const Problem<T> &p, long count, long row, long from, long to) {
  switch (count) {
  case 1: return block<1, 8, T>(p, row, from, to);
  case 2: return block<2, 8, T>(p, row, from, to);
  case 3: return block<3, 5, T>(p, row, from, to);
  case 4: return block<4, 4, T>(p, row, from, to);
  case 5: return block<5, 4, T>(p, row, from, to);
  case 6: return block<6, 4, T>(p, row, from, to);
  case 7: return block<7, 3, T>(p, row, from, to);
  default: return block<8, 3, T>(p, row, from, to);
  }
}

template <class T> void linear(const T *x, const T *w, const T *b, T *y, long m, long n, long k, int threads) {
  thread_local std::vector<float> scratch;
  long padded = (k + LANES - 1) / LANES * LANES;
  scratch.assign(m * padded, 0.0f);
  for (long row = 0; row < m; row++)
    for (long i = 0; i < k; i++) scratch[row * padded + i] = widen(x[row * k + i]);
  Problem<T> p{scratch.data(), w, b, y, padded, n, k};
#pragma omp parallel num_threads(threads)
  {
    long share = (n + omp_get_num_threads() - 1) / omp_get_num_threads();
    long first = omp_get_thread_num() * share, last = first + share < n ? first + share : n;
    for (long from = first; from < last; from += WEIGHTS_AT_ONCE) {
      long to = from + WEIGHTS_AT_ONCE < last ? from + WEIGHTS_AT_ONCE : last;
      for (long row = 0; row < m; row += ROWS_AT_ONCE) rows(p, m - row < ROWS_AT_ONCE ? m - row : ROWS_AT_ONCE, row, from, to);
    }
  }
}

} // namespace

extern "C" void linear_bf16(const uint16_t *x, const uint16_t *w, const uint16_t *b, uint16_t *y, long m, long n,
                            long k, int threads) {
  linear(x, w, b, y, m, n, k, threads);
}

extern "C" void linear_f32(const float *x, const float *w, const float *b, float *y, long m, long n, long k,
                           int threads) {
  linear(x, w, b, y, m, n, k, threads);
}
