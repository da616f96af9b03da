// y[m][n] = sum_k x[m][k] * w[n][k] + b[n], for the few rows m of a decoding pass and weights as PyTorch keeps them.
//
// Three properties matter here. The weights are read once, in their own layout, whatever the number of rows, and the
// next ones are on their way while these are multiplied: a pass over five tokens costs about what one over a single
// token costs. No second copy of the weights is kept. And every output is summed in one fixed order, a partial sum for each
// lane over k and then a tree, whatever stands beside it: the bits of a row do not depend on the width of the pass. They
// do depend on how many lanes a register has; those of weights in blocks (blocks.h) do not.
#pragma once

#include "lanes.h"
#include <atomic>

namespace {

constexpr long INPUT_BYTES = 48 << 10;   // of x that stay in the first cache while weights pass over them
constexpr long INPUT_STEPS = 1536;       // elements of k at a time, where x is too long for that
constexpr long WEIGHT_BYTES = 160 << 10; // of w that stay in the second cache while all rows of x pass over them
constexpr long STREAM_BYTES = 1 << 20;   // of w that a thread takes at a time, where one pass is all
constexpr long AHEAD_BYTES = 32 << 10;   // of w that are on their way then

// Scratch that is kept from call to call, aligned to a cache line.
template <class T> T *scratch(std::vector<char> &memory, long count) {
  memory.resize(count * sizeof(T) + 64);
  return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// Chunks of a matrix's outputs, handed to whichever thread asks next: cores are rarely equally fast.
struct Turns {
  std::atomic<long> next{0};
};

// Tiles of sums that stay in registers beside the weights and an input: of up to `rows` rows at a time, of more than that
// `many`, and as many columns as are best for a number of rows. Measured.
struct Tiles {
  long rows, many;
  int columns[8];
};
#if defined(__AVX2__) && !defined(__AVX512BW__) // sixteen registers, elsewhere there are thirty-two
constexpr Tiles FLOAT_TILES{5, 4, {6, 4, 4, 3, 2}};
constexpr long COLUMNS = 12; // what chunks of columns are multiples of: of all those above
#else
constexpr Tiles FLOAT_TILES{6, 6, {8, 8, 4, 4, 4, 4}};
constexpr long COLUMNS = 8;
#endif

// Weights one by one, in steps; an input is padded to whole steps. See Product.
struct InSteps {
  static constexpr long STEP = ::STEP, EACH = 1, OUTPUTS = 1;
  static long units(long k) { return k; }
  static long size(long k) { return whole_steps(k); }
};

// How weights of type T meet their input: the input's own type X, of which a row takes `size(k)` and `prepare` makes it, and
// one step of the product, over STEP elements in PARTS that have WIDTH of the input each. The weights of OUTPUTS outputs
// are `units(k)` T's, of EACH inputs each.
template <class T> struct Product : InSteps {
  using X = float;
  static void prepare(const T *from, long k, X *to) { spread(from, k, to); }
  using Part = Floats;
  static constexpr Tiles TILES = FLOAT_TILES;
  static constexpr long PARTS = ::PARTS, WIDTH = LANES;
  static Part part(const T *w, long part) { return load_part(w, part); }
  static void add(Floats &sum, const X *x, const Part &w) { sum = fused(load(x), w, sum); }
};

#if defined(__AVX512BF16__)
// The processor multiplies bfloat16 itself, two neighbours in one lane: twice the products of an instruction, and nothing
// to widen. Each product is exact in float32, each of the two additions rounds.
template <> struct Product<uint16_t> : InSteps {
  using X = uint16_t;
  using Part = __m512bh;
  // Squares of four by four read least for each product, and reading is what limits these.
  static constexpr Tiles TILES{8, 4, {8, 8, 4, 4, 4, 2, 2, 2}};
  static constexpr long PARTS = 1, WIDTH = STEP;
  static void prepare(const uint16_t *from, long k, X *to) {
    std::memcpy(to, from, k * sizeof(X));
    std::memset(to + k, 0, (size(k) - k) * sizeof(X));
  }
  static Part part(const uint16_t *w, long) {
    Part part;
    std::memcpy(&part, w, sizeof part);
    return part;
  }
  static void add(Floats &sum, const X *x, const Part &w) { sum = (Floats)_mm512_dpbf16_ps((__m512)sum, part(x, 0), w); }
};
#endif

template <class T> struct Linear {
  const typename Product<T>::X *x; // [rows][size]
  const T *w;                      // [n / OUTPUTS][units]
  long size, n, k;                 // k a multiple of EACH
  Linear(const typename Product<T>::X *x, const T *w, long n, long k)
      : x(x), w(w), size(Product<T>::size(k)), n(n), k((k + Product<T>::EACH - 1) / Product<T>::EACH * Product<T>::EACH) {}
  long bytes() const { return Product<T>::units(k) * long(sizeof(T)) / Product<T>::OUTPUTS; } // of an output's weights
};

// Weights to fetch meanwhile: so many bytes behind the ones at work, `near` for columns before `until`, `far` from there on.
// Each of the `parts` groups of rows that pass over the same weights fetches its part of every output's, so that memory is
// never idle, and never asked for too much.
struct Fetch {
  long near, until, far, part, parts;
};

template <int M, int N, class T>
inline void tile(const Linear<T> &p, long row, long from, long begin, long end, const Fetch &fetch,
                 Floats (&sums)[M][N]) {
  using P = Product<T>;
  const T *w = p.w + from * p.k;
  long first = p.k * fetch.part / fetch.parts, last = p.k * (fetch.part + 1) / fetch.parts;
  const typename P::X *x = p.x + row * p.size;
  long ahead = from < fetch.until ? fetch.near : fetch.far;
  for (long i = begin; i < end; i += P::STEP) {
    long distance = i >= first && i < last ? ahead : 0; // what is here already costs no more than a branch
    for (int n = 0; n < N; n++)
      for (long line = 0; line < P::STEP * long(sizeof(T)); line += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(w + n * p.k + i) + line + distance, 0, 2);
    // By parts, and within one by rows or by columns, so that what is needed again fits the registers beside the sums.
#pragma GCC unroll 8
    for (long part = 0; part < P::PARTS; part++) {
      const typename P::X *inputs = x + i + part * P::WIDTH;
      auto weight = [&](int n) { return P::part(w + n * p.k + i, part); };
      if constexpr (M < N) {
        for (int n = 0; n < N; n++) {
          typename P::Part each = weight(n);
          for (int m = 0; m < M; m++) P::add(sums[m][n], inputs + m * p.size, each);
        }
      } else {
        typename P::Part all[N];
        for (int n = 0; n < N; n++) all[n] = weight(n);
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++) P::add(sums[m][n], inputs + m * p.size, all[n]);
      }
    }
  }
}

// What is left of k behind the last whole step.
template <int M, int N, class T>
inline void tail(const Linear<T> &p, long row, long from, Floats (&sums)[M][N]) {
  using P = Product<T>;
  long whole = p.k / P::STEP * P::STEP;
  for (int n = 0; n < N; n++) {
    T rest[P::STEP] = {};
    std::memcpy(rest, p.w + (from + n) * p.k + whole, (p.k - whole) * sizeof(T));
    for (long part = 0; part < P::PARTS; part++) {
      auto weights = P::part(rest, part);
      for (int m = 0; m < M; m++) P::add(sums[m][n], p.x + (row + m) * p.size + whole + part * P::WIDTH, weights);
    }
  }
}

// What the partial sums of M rows and N columns come to: those of row m from totals + m * width on.
template <int M, int N> inline void total(const Floats (&partial)[M][N], float *totals, long width) {
  constexpr int count = M * N;
  float flat[(count + LANES - 1) / LANES * LANES];
  for (int first = 0; first < count; first += LANES) {
    Floats lanes[LANES] = {};
    for (int i = 0; i < LANES && first + i < count; i++) lanes[i] = partial[(first + i) / N][(first + i) % N];
    store(sums(lanes), flat + first);
  }
  for (int m = 0; m < M; m++) std::memcpy(totals + m * width, flat + m * N, N * sizeof(float));
}

// M rows of x against the weights from..to, N of them at a time; what comes after them is fetched meanwhile. Leaves the sums
// of row m from totals + m * width on.
template <int M, int N, class T>
void strip(const Linear<T> &p, long row, long from, long to, const Fetch &fetch, float *totals, long width) {
  long whole = p.k / Product<T>::STEP * Product<T>::STEP;
  long block = M * p.size * long(sizeof(*p.x)) <= INPUT_BYTES ? p.k : INPUT_STEPS;
  thread_local std::vector<char> memory;
  Floats *partial = scratch<Floats>(memory, (to - from) * M);
  for (long begin = 0; begin < p.k; begin += block) {
    long end = begin + block < whole ? begin + block : whole;
    for (long n = from; n < to; n += N) {
      Floats sums[M][N];
      Floats *kept = partial + (n - from) * M;
      for (int i = 0; i < M * N; i++) sums[i / N][i % N] = begin ? kept[i] : Floats{};
      tile<M, N, T>(p, row, n, begin, end, fetch, sums);
      if (begin + block < p.k) {
        for (int i = 0; i < M * N; i++) kept[i] = sums[i / N][i % N];
        continue;
      }
      if (whole < p.k) tail<M, N, T>(p, row, n, sums);
      total<M, N>(sums, totals + n - from, width);
    }
  }
}

template <int M = 1, class T>
void some_rows(const Linear<T> &p, long count, long row, long from, long to, const Fetch &fetch, float *totals, long width) {
  constexpr Tiles tiles = Product<T>::TILES;
  if constexpr (M < tiles.rows)
    if (count > M) return some_rows<M + 1>(p, count, row, from, to, fetch, totals, width);
  if constexpr (Product<T>::OUTPUTS > 1) {
    strip<M>(p, row, from, to, fetch, totals, width); // blocks.h
  } else {
    constexpr int N = tiles.columns[M - 1];
    long last = to - (to - from) % N;
    strip<M, N, T>(p, row, from, last, fetch, totals, width);
    strip<M, 1, T>(p, row, last, to, fetch, totals + last - from, width);
  }
}

// All m rows of x in groups, even ones: two of six rows are faster than eight and four.
template <class T, class Out>
void all_rows(const Linear<T> &p, long m, long from, long to, Fetch fetch, const Out &out) {
  constexpr Tiles tiles = Product<T>::TILES;
  long once = m > tiles.rows ? tiles.many : tiles.rows, groups = (m + once - 1) / once;
  long width = (to - from + Product<T>::OUTPUTS - 1) / Product<T>::OUTPUTS * Product<T>::OUTPUTS;
  thread_local std::vector<char> memory;
  float *totals = scratch<float>(memory, once * width);
  for (long group = 0; group < groups; group++) {
    long row = m * group / groups, end = m * (group + 1) / groups;
    fetch.part = group, fetch.parts = groups;
    some_rows(p, end - row, row, from, to, fetch, totals, width);
    for (long i = row; i < end; i++) out(i, from, totals + (i - row) * width, to - from);
  }
}

// Where results go: y, with the bias, and on top of a residual that is not y, if there is one.
template <class T> struct Output {
  const T *bias, *residual; // or null
  T *y;
  long n;

  // What the sums of `count` columns of a row, from `column` on, come to.
  void operator()(long row, long column, const float *totals, long count) const {
    T *to = y + row * n + column;
    for (long i = 0; i < count; i += LANES) {
      long some = count - i;
      Floats values = load(totals + i, some) + (bias ? load(bias + column + i, some) : Floats{});
      // Rounded twice, as by two operations.
      if (residual) values = load(residual + row * n + column + i, some) + rounded<T>(values);
      store(values, to + i, some);
    }
  }
};

template <class T> constexpr long least_chunk() { return Product<T>::OUTPUTS > 1 ? Product<T>::OUTPUTS : COLUMNS; }

// Columns that a thread takes at a time, for m rows. Where rows pass over them more than once they stay in the second cache.
template <class T> long chunk_of(const Linear<T> &p, long m, long threads) {
  constexpr long least = least_chunk<T>();
  long most = (m > Product<T>::TILES.rows ? WEIGHT_BYTES : STREAM_BYTES) / p.bytes(), fair = p.n / (8 * threads);
  long chunk = (most < fair ? most : fair) / least * least;
  return chunk < least ? least : chunk;
}

// Where the product that follows begins, for m rows: its weights, how many bytes they are, and those of a turn.
struct Following {
  const char *weights;
  long bytes, each, turn;
  Following() : weights(nullptr) {}
  template <class T> Following(const Linear<T> &p, long m, long threads)
      : weights(reinterpret_cast<const char *>(p.w)), bytes(p.n * p.bytes()), each(p.bytes()),
        turn(chunk_of(p, m, threads) * p.bytes()) {}
};

// To be called by every thread of a parallel region, with turns of their own for each product; the threads share the
// outputs, and out(m, n, sums, count) is called for each row and some neighbours n..n + count at a time. What stands
// between a product and the one that follows is time in which memory would do nothing.
template <class T, class Out>
void multiply(const Linear<T> &p, long m, Turns &turns, const Out &out, const Following &next = Following()) {
  long threads = omp_get_num_threads(), chunk = chunk_of(p, m, threads);
  // Columns to be ahead: a whole chunk where it is read more than once, else what memory takes to answer.
  long few = least_chunk<T>() * (AHEAD_BYTES / (least_chunk<T>() * p.bytes()) + 1);
  long ahead = m > Product<T>::TILES.rows || few > chunk ? chunk : few;
  for (long turn; (turn = turns.next.fetch_add(1, std::memory_order_relaxed)) * chunk < p.n;) {
    long from = turn * chunk, to = from + chunk < p.n ? from + chunk : p.n;
    // This thread's next turn comes when all the others had theirs; behind its last one comes the next product.
    Fetch fetch{ahead * p.bytes(), to - ahead, 0, 0, 1};
    if (from + (threads + 1) * chunk <= p.n) {
      fetch.far = ((threads - 1) * chunk + ahead) * p.bytes();
    } else if (next.weights) {
      long first = turn % threads * next.turn;
      if (first + ahead * next.each <= next.bytes)
        fetch.far = next.weights + first - (reinterpret_cast<const char *>(p.w) + (to - ahead) * p.bytes());
    }
    all_rows(p, m, from, to, fetch, out);
  }
}

} // namespace
