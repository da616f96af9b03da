// Weights of four, six or eight bits with scales, in the blocks of GGUF files or made by ourselves: w = scale q + least.
//
// All formats are kept in six layouts (blocks.py makes them), to the value. Sixteen outputs stand together: four neighbours
// of the first, of the second and so on are 64 bytes, and a lane belongs to one output. So an instruction multiplies the
// same four numbers of an input by those of many outputs, scales are a vector of their own, and nothing is added up across
// lanes. Numbers are stored without a sign, so that of bytes 128 is added to them.
//
// An input is rounded to eight bits, with a unit for each 32 neighbours; groups with outliers, whose unit is far above the
// others', to fifteen, in two bytes. Products of a group are summed as integers; then
// an output's groups are added one after another, by the same operations whatever the number of rows and of lanes: bits
// depend on neither, nor on the instruction set. What is added to weights, `least`, meets the sum of a group's inputs.
#pragma once

#include "linear.h"

namespace {

constexpr long GROUP = 32, SUPER = 256, TOGETHER = 16, SPLIT = TOGETHER / LANES;

// Numbers of a struct's outputs. Four bits: the first four neighbours below, the next four above. Six: of sixteen neighbours
// four, the next four and the next, and above them the last four, two bits in each, from below.
template <long K> struct Nibbles {
  uint8_t low[K / 8][64];
};
template <long K> struct Sixes {
  uint8_t lines[K / 16][3][64];
};
template <long K> struct Bytewise {
  uint8_t all[K / 4][64];
};

// Sixteen outputs' next 32 inputs; scales are float16. Q4_0, Q4_1.
struct Nibbles32 {
  uint16_t scales[TOGETHER], leasts[TOGETHER];
  Nibbles<GROUP> numbers;
};
// Q5_0, Q5_1.
struct Sixes32 {
  uint16_t scales[TOGETHER], leasts[TOGETHER];
  Sixes<GROUP> numbers;
};
// Q8_0, IQ4_NL.
struct Bytes32 {
  uint16_t scales[TOGETHER];
  Bytewise<GROUP> numbers;
};
// Sixteen outputs' next 256 inputs. Q4_K: a scale is unit scales[i], what is added least leasts[i]: below zero where others
// say min.
struct NibblesK {
  uint16_t unit[TOGETHER], least[TOGETHER];
  uint8_t scales[8][TOGETHER], leasts[8][TOGETHER];
  Nibbles<SUPER> numbers;
};
// Q3_K, Q6_K: a scale for each sixteen, and 32 taken off numbers.
struct SixesK {
  uint16_t unit[TOGETHER];
  int8_t scales[16][TOGETHER];
  Sixes<SUPER> numbers;
};
// Q2_K, Q5_K.
struct SixesLeastK {
  uint16_t unit[TOGETHER], least[TOGETHER];
  uint8_t scales[16][TOGETHER], leasts[16][TOGETHER];
  Sixes<SUPER> numbers;
};

// Which of them a matrix is in.
enum Layout : int64_t { NIBBLES32, SIXES32, BYTES32, NIBBLES_K, SIXES_K, SIXES_LEAST_K };

// Thirty-two bytes, what one is worth, and the sum of both sixteens, also as shorts, and of all.
struct Rounded {
  int8_t numbers[GROUP];
  float unit;
  int32_t sums[2], sum;
  int16_t shorts[2];
};
// Thirty-two inputs: `upper`, and where there are `two` of each also `lower`. Their sums, of both sixteens and of all.
struct alignas(64) Inputs {
  Rounded upper, lower;
  float sums[2], sum;
  int32_t two;
};

// A group has two bytes where its largest input is more than so many times what the row's largest ones are in the mean
// square: a tenth of all, and a quarter of the error is left. Ablation in docs/experiments.
constexpr float OUTLIER = 1.5f;

// The input of all layouts, so that a layer's matrices may be in several.
struct BlockInput {
  using X = Inputs;
  static constexpr long OUTPUTS = TOGETHER;
  static long size(long k) { return (k + SUPER - 1) / SUPER * (SUPER / GROUP); } // whole blocks, behind the input zeros
  template <class From> static void prepare(const From *from, long k, X *to) {
    long groups = (k + GROUP - 1) / GROUP;
    float squares = 0;
    for (long i = 0; i < groups; i++) {
      Floats values[VECTORS], sizes = {};
      read(from + i * GROUP, k - i * GROUP, values);
      for (const Floats &each : values) {
        Floats size = each < 0 ? -each : each;
        sizes = size > sizes ? size : sizes;
      }
      to[i].sum = largest(sizes);
      squares += to[i].sum * to[i].sum;
    }
    for (long i = 0; i < groups; i++) {
      Floats values[VECTORS];
      read(from + i * GROUP, k - i * GROUP, values);
      round(values, to[i].sum, to[i].sum * to[i].sum * float(groups) > OUTLIER * OUTLIER * squares, to[i]);
    }
    std::memset(to + groups, 0, (size(k) - groups) * sizeof(X));
  }

private:
  static constexpr long VECTORS = GROUP / LANES;
  template <class From> static void read(const From *from, long count, Floats (&values)[VECTORS]) {
    for (long i = 0; i < VECTORS; i++)
      values[i] = count >= GROUP ? load(from + i * LANES) : count > i * LANES ? load(from + i * LANES, count - i * LANES) : Floats{};
  }
  static void round(const Floats (&values)[VECTORS], float largest, bool two, Inputs &to) {
    float most = two ? 127 * 128 : 127, inverse = largest > 0 ? most / largest : 0.0f;
    Ints uppers[2] = {}, lowers[2] = {};
    for (long i = 0; i < VECTORS; i++) {
      Floats scaled = values[i] * inverse;
      Ints whole = __builtin_convertvector(scaled + (scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
      Ints upper = two ? (whole + 64) >> 7 : whole, lower = two ? whole - (upper << 7) : Ints{};
      uppers[2 * i / VECTORS] += upper, lowers[2 * i / VECTORS] += lower;
      Few high = narrowed(upper), low = narrowed(lower);
      std::memcpy(to.upper.numbers + i * LANES, &high, sizeof high);
      std::memcpy(to.lower.numbers + i * LANES, &low, sizeof low);
    }
    to.two = two;
    to.lower.unit = largest / (127 * 128), to.upper.unit = to.lower.unit * 128;
    for (long i = 0; i < 2; i++) {
      to.upper.sums[i] = ::sum(uppers[i]), to.lower.sums[i] = ::sum(lowers[i]);
      to.upper.shorts[i] = int16_t(to.upper.sums[i]), to.lower.shorts[i] = int16_t(to.lower.sums[i]);
      to.sums[i] = to.lower.unit * float(128 * to.upper.sums[i] + to.lower.sums[i]);
    }
    to.upper.sum = to.upper.sums[0] + to.upper.sums[1], to.lower.sum = to.lower.sums[0] + to.lower.sums[1];
    to.sum = to.lower.unit * float(128 * to.upper.sum + to.lower.sum);
  }
};

inline Bytes shifted(Bytes bytes, long by) { return (Bytes)((Words)bytes >> by); } // bits from above come in

// Four numbers of each output, without a sign and of BITS bits.
template <int BITS> struct Numbers {
  Bytes all;
  Numbers() = default;
  explicit Numbers(Bytes bytes) : all(bytes) {}
};

// Sums of products of those and of inputs, two steps at a time. The first ones are sums themselves: compilers would clear
// sums in memory.
#if defined(DOT_FOURS)
template <int BITS> struct Dots {
  Ints sum;
  void add(bool first, const Numbers<BITS> &w0, const Numbers<BITS> &w1, Bytes x0, Bytes x1) {
    sum = dot_fours(dot_fours(first ? Ints{} : sum, w0.all, x0), w1.all, x1);
  }
  Ints total() const { return sum; }
};
#else
// Products of two bytes are added up in 16 bits: eight of those with four bits have room, two of those with six.
template <int BITS> struct Dots {
  Shorts sum;
  void add(bool first, const Numbers<BITS> &w0, const Numbers<BITS> &w1, Bytes x0, Bytes x1) {
    Shorts product = dot_bytes(w0.all, x0);
    sum = here(first ? product : sum + product);
    sum = here(sum + dot_bytes(w1.all, x1));
  }
  Ints total() const { return dot_shorts(sum, Shorts{} + 1); }
};
template <> struct Dots<6> {
  Ints sum;
  void add(bool first, const Numbers<6> &w0, const Numbers<6> &w1, Bytes x0, Bytes x1) {
    Ints product = dot_shorts(dot_bytes(w0.all, x0) + dot_bytes(w1.all, x1), Shorts{} + 1);
    sum = here(first ? product : sum + product);
  }
  Ints total() const { return sum; }
};
// One of those with eight has room if both bytes have a sign; the weights' is given to the inputs.
template <> struct Numbers<8> {
  Bytes all, size;
  Numbers() = default;
  explicit Numbers(Bytes bytes) : all(bytes ^ 128), size(without_sign(all)) {}
  Ints times(Bytes x) const { return dot_shorts(dot_bytes(size, signed_as(x, all)), Shorts{} + 1); }
};
template <> struct Dots<8> {
  Ints sum;
  void add(bool first, const Numbers<8> &w0, const Numbers<8> &w1, Bytes x0, Bytes x1) {
    sum = here(first ? w0.times(x0) : sum + w0.times(x0));
    sum = here(sum + w1.times(x1));
  }
  Ints total() const { return sum; }
};
#endif
#if defined(__aarch64__) // bytes have a sign there
template <> struct Numbers<8> {
  Bytes all;
  Numbers() = default;
  explicit Numbers(Bytes bytes) : all(bytes ^ 128) {}
};
#endif
#if defined(DOT_FOURS) && !defined(__aarch64__)
constexpr bool WITHOUT_SIGN = true; // numbers of eight bits when they are multiplied
#else
constexpr bool WITHOUT_SIGN = false;
#endif

inline Bytes load_bytes(const uint8_t *from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}
inline Bytes four_of(const void *from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return (Bytes)(Ints{} + word);
}
inline float half(uint16_t from) {
#if defined(__aarch64__)
  __fp16 value;
  std::memcpy(&value, &from, sizeof value);
  return value;
#else
  return _cvtsh_ss(from);
#endif
}

// How the numbers of a struct are read: four neighbours of the outputs from `lane` on, or one number of one output. OFFSET
// is to be taken off, and with it what it adds to a sum of products.
template <long K> Numbers<4> four(const Nibbles<K> &numbers, long step, long lane) {
  return Numbers<4>(shifted(load_bytes(numbers.low[step / 2] + 4 * lane), step % 2 * 4) & 15);
}
template <long K> Numbers<6> four(const Sixes<K> &numbers, long step, long lane) {
  auto line = [&](long i) { return load_bytes(numbers.lines[step / 4][i] + 4 * lane); };
  if (step % 4 < 3) return Numbers<6>(line(step % 4) & 63);
  return Numbers<6>(shifted(line(0) & 192, 6) | shifted(line(1) & 192, 4) | shifted(line(2) & 192, 2));
}
template <long K> Numbers<8> four(const Bytewise<K> &numbers, long step, long lane) {
  return Numbers<8>(load_bytes(numbers.all[step] + 4 * lane));
}
template <long K> int one(const Nibbles<K> &numbers, long i, long lane) {
  return numbers.low[i / 8][4 * lane + i % 4] >> (i / 4 % 2 * 4) & 15;
}
template <long K> int one(const Sixes<K> &numbers, long i, long lane) {
  auto byte = [&](long line) { return numbers.lines[i / 16][line][4 * lane + i % 4]; };
  return i / 4 % 4 < 3 ? byte(i / 4 % 4) & 63 : byte(0) >> 6 | byte(1) >> 6 << 2 | byte(2) >> 6 << 4;
}
template <long K> int one(const Bytewise<K> &numbers, long i, long lane) { return numbers.all[i / 4][4 * lane + i % 4]; }

// Blocks of 32 numbers of BITS bits. LEAST: with something added.
template <class B, int OF_BITS, bool WITH> struct Of32 : BlockInput {
  static constexpr int BITS = OF_BITS, OFFSET = BITS == 8 ? 128 : 0;
  static constexpr long EACH = GROUP, SHARE = GROUP; // inputs of a struct, and those with a scale in common
  static constexpr bool LEAST = WITH, UNIT = false;
  static Floats scale(const B *w, long, long lane) { return halves(w->scales + lane); }
  static Floats least(const B *w, long, long lane) { return halves(w->leasts + lane); }
  static float one_scale(const B &w, long, long lane) { return half(w.scales[lane]); }
  static float one_least(const B &w, long, long lane) {
    if constexpr (LEAST) return half(w.leasts[lane]);
    return 0;
  }
};
// Blocks of 256 with integer scales, for each SHARED numbers. UNIT: those of a group are multiplied and added up as integers,
// or as floats that are exact (less than 2^24), and then meet the unit.
template <class B, int OF_BITS, bool WITH, long SHARED> struct Of256 : BlockInput {
  static constexpr int BITS = OF_BITS, OFFSET = WITH ? 0 : 32;
  static constexpr long EACH = SUPER, SHARE = SHARED;
  static constexpr bool LEAST = WITH, UNIT = SHARE < GROUP;
  static Floats unit(const B *w, long lane) { return halves(w->unit + lane); }
  static Floats scale(const B *w, long at, long lane) {
    Floats scale = floats(w->scales[at] + lane);
    return UNIT ? scale : unit(w, lane) * scale;
  }
  static Floats least(const B *w, long at, long lane) { return halves(w->least + lane) * floats(w->leasts[at] + lane); }
  static float one_scale(const B &w, long at, long lane) { return half(w.unit[lane]) * w.scales[at][lane]; }
  static float one_least(const B &w, long at, long lane) {
    if constexpr (LEAST) return half(w.least[lane]) * w.leasts[at][lane];
    return 0;
  }
};
// Sums of ROWS rows stay in registers, of VECTORS vectors of outputs, which have the inputs' broadcasts in common.
template <class Base> struct BlockProduct : Base {
#if defined(__AVX2__) && !defined(__AVX512BW__)
  static constexpr long ROWS = 4, VECTORS = SPLIT;
#else
  static constexpr long ROWS = 8, VECTORS = 1;
#endif
  static constexpr Tiles TILES{ROWS, ROWS, {}};
  static long units(long k) { return (k + Base::EACH - 1) / Base::EACH; }
};
template <> struct Product<Nibbles32> : BlockProduct<Of32<Nibbles32, 4, true>> {};
template <> struct Product<Sixes32> : BlockProduct<Of32<Sixes32, 6, true>> {};
template <> struct Product<Bytes32> : BlockProduct<Of32<Bytes32, 8, false>> {};
template <> struct Product<NibblesK> : BlockProduct<Of256<NibblesK, 4, true, 32>> {};
template <> struct Product<SixesK> : BlockProduct<Of256<SixesK, 6, false, 16>> {};
template <> struct Product<SixesLeastK> : BlockProduct<Of256<SixesLeastK, 6, true, 16>> {};

inline const Rounded &row_of(const Rounded *x, long apart, int m) {
  return *reinterpret_cast<const Rounded *>(reinterpret_cast<const char *>(x) + m * apart * long(sizeof(Inputs)));
}

#if !defined(DOT_FOURS)
// As dot_groups, for numbers with UNIT: shorts are added up by a multiplication anyway, here by that with their scale. So the
// sums of a group stay in registers, where those of each sixteen had to be floats and wait for the others in memory.
template <int M, class B, int V>
inline void dot_scaled(const B *w, long at, long lane, const Rounded *x, long apart, Floats (&totals)[M][V]) {
  using P = Product<B>;
  static_assert(P::SHARE == 16 && P::BITS == 6);
  Ints sums[M * V], scales[2][V];
#pragma GCC unroll 2
  for (long part = 0; part < 2; part++) {
    for (int v = 0; v < V; v++) {
      Ints scale = ints(w->scales[2 * at + part] + lane + v * LANES) & 0xffff;
      scales[part][v] = here(scale | scale << 16);
    }
#pragma GCC unroll 2
    for (long step = 0; step < 4; step += 2) {
      long i = 4 * (2 * at + part) + step;
      Numbers<6> w0[V], w1[V];
      for (int v = 0; v < V; v++) {
        w0[v] = four(w->numbers, i, lane + v * LANES);
        w1[v] = four(w->numbers, i + 1, lane + v * LANES);
      }
      for (int m = 0; m < M; m++) {
        const int8_t *from = row_of(x, apart, m).numbers + 16 * part + 4 * step;
        Bytes x0 = four_of(from), x1 = four_of(from + 4);
        for (int v = 0; v < V; v++) {
          Ints product = dot_shorts(dot_bytes(w0[v].all, x0) + dot_bytes(w1[v].all, x1), (Shorts)scales[part][v]);
          Ints &sum = sums[m * V + v];
          sum = here(part || step ? sum + product : product);
        }
      }
    }
  }
  for (int v = 0; v < V; v++) {
    Floats unit = P::unit(w, lane + v * LANES);
    Shorts taken = (Shorts)((scales[0][v] & 0xffff) | scales[1][v] << 16) * P::OFFSET;
    for (int m = 0; m < M; m++) {
      Ints sum = sums[m * V + v];
      if constexpr (P::OFFSET != 0) sum -= dot_shorts(taken, (Shorts)four_of(row_of(x, apart, m).shorts));
      totals[m][v] = __builtin_convertvector(sum, Floats) * unit;
    }
  }
}
#endif

// Bytes of M rows, `apart` groups from each other, by group `at` of a struct, its outputs from `lane` on.
template <int M, class B, int V = Product<B>::VECTORS>
inline void dot_groups(const B *w, long at, long lane, const Rounded *x, long apart, Floats (&totals)[M][V]) {
  using P = Product<B>;
  constexpr long PARTS = GROUP / P::SHARE, STEPS = P::SHARE / 4;
  auto row = [&](int m) -> const Rounded & { return row_of(x, apart, m); };
#if !defined(DOT_FOURS)
  if constexpr (P::UNIT) return dot_scaled<M, B, V>(w, at, lane, x, apart, totals);
#endif
  for (long part = 0; part < PARTS; part++) {
    Dots<P::BITS> dots[M * V];
#pragma GCC unroll 8
    for (long step = 0; step < STEPS; step += 2) {
      long i = (at * PARTS + part) * STEPS + step;
      Numbers<P::BITS> w0[V], w1[V];
      for (int v = 0; v < V; v++) {
        w0[v] = four(w->numbers, i, lane + v * LANES);
        w1[v] = four(w->numbers, i + 1, lane + v * LANES);
      }
      for (int m = 0; m < M; m++) {
        const int8_t *from = row(m).numbers + 4 * (part * STEPS + step);
        Bytes x0 = four_of(from), x1 = four_of(from + 4);
        for (int v = 0; v < V; v++) dots[m * V + v].add(!step, w0[v], w1[v], x0, x1);
      }
    }
    for (int v = 0; v < V; v++) {
      Floats scale = P::scale(w, at * PARTS + part, lane + v * LANES);
      for (int m = 0; m < M; m++) {
        Ints total = dots[m * V + v].total();
        if constexpr (P::OFFSET && (P::BITS < 8 || WITHOUT_SIGN))
          total -= P::OFFSET * here(Ints{} + (PARTS == 1 ? row(m).sum : row(m).sums[part]));
        Floats floats = __builtin_convertvector(total, Floats);
        totals[m][v] = part ? fused(floats, scale, totals[m][v]) : floats * scale;
      }
    }
  }
  if constexpr (P::UNIT)
    for (int v = 0; v < V; v++)
      for (int m = 0; m < M; m++) totals[m][v] = totals[m][v] * P::unit(w, lane + v * LANES);
}
// Of lower bytes; rare, and by itself, so that it costs the others no registers.
template <class B, int V = Product<B>::VECTORS>
__attribute__((noinline)) void dot_lower(const B *w, long at, long lane, const Rounded *x, Floats (&totals)[1][V]) {
  dot_groups<1>(w, at, lane, x, 0, totals);
}

// A group of M rows, `size` apart, by that of sixteen outputs, number `at` of its struct.
template <int M, class B>
inline void add_group(const B *w, long at, const Inputs *x, long size, Floats (&sums)[SPLIT][M]) {
  using P = Product<B>;
  constexpr int PARTS = GROUP / P::SHARE, V = P::VECTORS;
  int32_t two = 0;
  for (int m = 0; m < M; m++) two |= x[m * size].two;
  for (long lane = 0; lane < TOGETHER; lane += V * LANES) {
    Floats totals[M][V], lower[M][1][V], (*mine)[M] = sums + lane / LANES;
    // Before the others, that a call finds no sums in registers.
    if (__builtin_expect(two, 0))
      for (int m = 0; m < M; m++)
        if (x[m * size].two) dot_lower(w, at, lane, &x[m * size].lower, lower[m]);
    dot_groups<M>(w, at, lane, &x->upper, size, totals);
    for (int v = 0; v < V; v++)
      for (int m = 0; m < M; m++) mine[v][m] = fused(totals[m][v], all(x[m * size].upper.unit), mine[v][m]);
    if (__builtin_expect(two, 0))
      for (int m = 0; m < M; m++)
        if (x[m * size].two)
          for (int v = 0; v < V; v++) mine[v][m] = fused(lower[m][0][v], all(x[m * size].lower.unit), mine[v][m]);
    if constexpr (P::LEAST)
      for (long part = 0; part < PARTS; part++)
        for (int v = 0; v < V; v++) {
          Floats least = P::least(w, at * PARTS + part, lane + v * LANES);
          for (int m = 0; m < M; m++)
            mine[v][m] = fused(all(PARTS == 1 ? x[m * size].sum : x[m * size].sums[part]), least, mine[v][m]);
        }
  }
}

// M rows against the outputs from..to, as `strip` for other weights; `from` is a multiple of sixteen.
template <int M, class B>
void strip(const Linear<B> &p, long row, long from, long to, const Fetch &fetch, float *totals, long width) {
  using P = Product<B>;
  constexpr long GROUPS = P::EACH / GROUP, LINES = (long(sizeof(B)) + 64 * GROUPS - 1) / (64 * GROUPS) * 64;
  long count = P::units(p.k), first = count * fetch.part / fetch.parts, last = count * (fetch.part + 1) / fetch.parts;
  for (long n = from; n < to; n += TOGETHER) {
    const B *w = p.w + n / TOGETHER * count;
    const Inputs *x = p.x + row * p.size;
    long ahead = n < fetch.until ? fetch.near : fetch.far;
    Floats sums[SPLIT][M] = {};
    for (long unit = 0; unit < count; unit++, w++) {
      const char *next = unit >= first && unit < last && ahead ? reinterpret_cast<const char *>(w) + ahead : nullptr;
      for (long at = 0; at < GROUPS; at++, x++) {
        // A few lines at a time: a core waits where more are on their way than it has places for.
        for (long line = at * LINES; next && line < (at + 1) * LINES && line < long(sizeof(B)); line += 64)
          __builtin_prefetch(next + line, 0, 2);
        add_group<M, B>(w, at, x, p.size, sums);
      }
    }
    for (long i = 0; i < SPLIT; i++)
      for (int m = 0; m < M; m++) store(sums[i][m], totals + m * width + n - from + i * LANES);
  }
}

// Matrices of a layer that are in different layouts, and have their input in common.
struct AnyBlocks;
template <> struct Product<AnyBlocks> : BlockInput {};

// f of the weights at an address, in the type of their layout.
template <class F> void in_layout(int64_t layout, const void *weights, const F &f) {
  switch (layout) {
  case NIBBLES32: return f(static_cast<const Nibbles32 *>(weights));
  case SIXES32: return f(static_cast<const Sixes32 *>(weights));
  case BYTES32: return f(static_cast<const Bytes32 *>(weights));
  case NIBBLES_K: return f(static_cast<const NibblesK *>(weights));
  case SIXES_K: return f(static_cast<const SixesK *>(weights));
  case SIXES_LEAST_K: return f(static_cast<const SixesLeastK *>(weights));
  }
}

} // namespace
