// Weights of four or eight bits with scales, in the blocks of GGUF files or made by ourselves: w = scale q + least.
//
// All formats are kept in six layouts (blocks.py makes them), to the value. Sixteen outputs stand together: four neighbours
// of the first, of the second and so on are 64 bytes, and a lane belongs to one output. So an instruction multiplies the
// same four numbers of an input by those of many outputs, scales are a vector of their own, and nothing is added up across
// lanes. Bytes are stored with 128 added.
//
// An input is rounded to eight bits, with a unit for each 32 neighbours. Products of a group are summed as integers; then
// an output's groups are added one after another, by the same operations whatever the number of rows and of lanes: bits
// depend on neither, nor on the instruction set. What is added to weights, `least`, meets the sum of a group's inputs.
#pragma once

#include "linear.h"

namespace {

constexpr long GROUP = 32, SUPER = 256, TOGETHER = 16, SPLIT = TOGETHER / LANES;

// Sixteen outputs' next 32 inputs. Q4_0, Q4_1; four bits: the first four neighbours below, the next four above.
struct Nibbles32 {
  uint16_t scales[TOGETHER], leasts[TOGETHER]; // float16
  uint8_t numbers[4][64];
};
// Q8_0, Q5_0, IQ4_NL.
struct Bytes32 {
  uint16_t scales[TOGETHER];
  uint8_t numbers[8][64];
};
// Q5_1.
struct BytesLeast32 {
  uint16_t scales[TOGETHER], leasts[TOGETHER];
  uint8_t numbers[8][64];
};
// Sixteen outputs' next 256 inputs. Q4_K: a scale is unit scales[i], what is added least leasts[i]: below zero where others
// say min.
struct NibblesK {
  uint16_t unit[TOGETHER], least[TOGETHER];
  uint8_t scales[8][TOGETHER], leasts[8][TOGETHER], numbers[32][64];
};
// Q3_K, Q6_K: a scale for each sixteen.
struct BytesK {
  uint16_t unit[TOGETHER];
  int8_t scales[16][TOGETHER];
  uint8_t numbers[64][64];
};
// Q2_K, Q5_K.
struct BytesLeastK {
  uint16_t unit[TOGETHER], least[TOGETHER];
  uint8_t scales[16][TOGETHER], leasts[16][TOGETHER], numbers[64][64];
};

// Which of them a matrix is in.
enum Layout : int64_t { NIBBLES32, BYTES32, BYTES_LEAST32, NIBBLES_K, BYTES_K, BYTES_LEAST_K };

// Thirty-two inputs, rounded; `unit` is what one is worth. Of both sixteens, and of all: their sum times the unit, and what
// the 128 too many in each byte add, taken off.
struct alignas(64) Inputs {
  int8_t numbers[GROUP];
  float unit, sums[2], sum;
  int32_t surplus[2], all;
};

// The input of all layouts, so that a layer's matrices may be in several.
struct BlockInput {
  using X = Inputs;
  static constexpr long OUTPUTS = TOGETHER;
  static long size(long k) { return (k + SUPER - 1) / SUPER * (SUPER / GROUP); } // whole blocks, behind the input zeros
  template <class From> static void prepare(const From *from, long k, X *to) {
    for (long i = 0; i < size(k); i++) round(from + i * GROUP, k - i * GROUP, to[i]);
  }
  template <class From> static void round(const From *from, long count, Inputs &to) {
    constexpr long VECTORS = GROUP / LANES;
    Floats values[VECTORS], sizes = {};
    for (long i = 0; i < VECTORS; i++) {
      values[i] = count >= GROUP ? load(from + i * LANES) : count > i * LANES ? load(from + i * LANES, count - i * LANES) : Floats{};
      Floats size = values[i] < 0 ? -values[i] : values[i];
      sizes = size > sizes ? size : sizes;
    }
    float largest = ::largest(sizes), inverse = largest > 0 ? 127 / largest : 0.0f;
    Ints sums[2] = {};
    for (long i = 0; i < VECTORS; i++) {
      Floats scaled = values[i] * inverse;
      Ints whole = __builtin_convertvector(scaled + (scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
      Few few = __builtin_convertvector(whole, Few);
      std::memcpy(to.numbers + i * LANES, &few, sizeof few);
      sums[2 * i / VECTORS] += whole;
    }
    int32_t first = sum(sums[0]), second = sum(sums[1]);
    to.unit = largest / 127;
    to.sums[0] = to.unit * float(first), to.sums[1] = to.unit * float(second), to.sum = to.unit * float(first + second);
    to.surplus[0] = -128 * first, to.surplus[1] = -128 * second, to.all = -128 * (first + second);
  }
};

// Four neighbours of LANES outputs, as they are multiplied. WIDE: of eight bits.
#if defined(__AVX512VNNI__) || defined(__aarch64__)
template <bool WIDE> struct Numbers {
  Bytes bytes;
  explicit Numbers(Bytes stored) : bytes(stored) {
#if defined(__aarch64__)
    if (WIDE) bytes ^= 128; // both have a sign there
#endif
  }
};
// Sums of products, the same inputs by the numbers of each output.
template <bool WIDE> struct Dots {
  Ints sum = {};
  void add(const Numbers<WIDE> &w, Bytes x) { sum = dot_fours(sum, w.bytes, x); }
#if defined(__aarch64__)
  Ints total(int32_t) const { return sum; }
#else
  Ints total(int32_t surplus) const { return WIDE ? sum + surplus : sum; }
#endif
};
#else
// Products of two bytes are added up in 16 bits: eight of those of four bits have room. So eight bits are two times four.
template <bool WIDE> struct Numbers {
  Bytes low, high;
  explicit Numbers(Bytes stored) : low(stored & 15), high((Bytes)((Shorts)stored >> 4) & 15) {}
};
template <> struct Numbers<false> {
  Bytes low;
  explicit Numbers(Bytes stored) : low(stored) {}
};
template <bool WIDE> struct Dots {
  Shorts low = {}, high = {};
  void add(const Numbers<WIDE> &w, Bytes x) {
    low += dot_bytes(w.low, x);
    if constexpr (WIDE) high += dot_bytes(w.high, x);
  }
  Ints total(int32_t surplus) const {
    Ints sum = dot_shorts(low, Shorts{} + 1);
    return WIDE ? sum + dot_shorts(high, Shorts{} + 16) + surplus : sum;
  }
};
#endif

inline Bytes load_bytes(const uint8_t *from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}
inline Bytes four_of(const int8_t *from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return (Bytes)(Ints{} + word);
}
inline float half(const uint16_t &from) {
  uint16_t all[LANES] = {from};
  return halves(all)[0];
}

// Numbers of four bits or eight in `steps` of four neighbours.
template <class B, bool IS_WIDE> struct Packed : BlockInput {
  static constexpr bool WIDE = IS_WIDE;
  // The steps 2 i and 2 i + 1 of the outputs from `lane` on.
  static Numbers<WIDE> number(const B *w, long step, long lane) {
    if constexpr (WIDE) return Numbers<WIDE>(load_bytes(w->numbers[step] + 4 * lane));
    Bytes both = load_bytes(w->numbers[step / 2] + 4 * lane);
    return Numbers<WIDE>((step % 2 ? (Bytes)((Words)both >> 4) : both) & 15);
  }
  // Of one output, the number at `i`.
  static int one(const B &w, long i, long lane) {
    if constexpr (WIDE) return w.numbers[i / 4][4 * lane + i % 4] - 128;
    return w.numbers[i / 8][4 * lane + i % 4] >> (i / 4 % 2 * 4) & 15;
  }
};

// Blocks of 32; LEAST: with something added.
template <class B, bool IS_WIDE, bool WITH> struct Of32 : Packed<B, IS_WIDE> {
  static constexpr long EACH = GROUP, SHARE = GROUP; // inputs of a struct, and those with a scale in common
  static constexpr bool LEAST = WITH;
  static Floats scale(const B *w, long, long lane) { return halves(w->scales + lane); }
  static Floats least(const B *w, long, long lane) { return halves(w->leasts + lane); }
  static float one_scale(const B &w, long, long lane) { return half(w.scales[lane]); }
  static float one_least(const B &w, long, long lane) {
    if constexpr (LEAST) return half(w.leasts[lane]);
    return 0;
  }
};
// Blocks of 256 with integer scales, for each SHARED numbers.
template <class B, bool IS_WIDE, bool WITH, long SHARED> struct Of256 : Packed<B, IS_WIDE> {
  static constexpr long EACH = SUPER, SHARE = SHARED;
  static constexpr bool LEAST = WITH;
  static Floats scale(const B *w, long at, long lane) { return halves(w->unit + lane) * floats(w->scales[at] + lane); }
  static Floats least(const B *w, long at, long lane) { return halves(w->least + lane) * floats(w->leasts[at] + lane); }
  static float one_scale(const B &w, long at, long lane) { return half(w.unit[lane]) * w.scales[at][lane]; }
  static float one_least(const B &w, long at, long lane) {
    if constexpr (LEAST) return half(w.least[lane]) * w.leasts[at][lane];
    return 0;
  }
};
template <class T> struct Blocks; // what a layout's struct means
template <> struct Blocks<Nibbles32> : Of32<Nibbles32, false, true> {};
template <> struct Blocks<Bytes32> : Of32<Bytes32, true, false> {};
template <> struct Blocks<BytesLeast32> : Of32<BytesLeast32, true, true> {};
template <> struct Blocks<NibblesK> : Of256<NibblesK, false, true, 32> {};
template <> struct Blocks<BytesK> : Of256<BytesK, true, false, 16> {};
template <> struct Blocks<BytesLeastK> : Of256<BytesLeastK, true, true, 16> {};

template <class B> struct BlockProduct : Blocks<B> {
  using Blocks<B>::EACH;
#if defined(__AVX2__) && !defined(__AVX512BW__)
  static constexpr long ROWS = Blocks<B>::WIDE ? 4 : 8;
#else
  static constexpr long ROWS = 8;
#endif
  static constexpr Tiles TILES{ROWS, ROWS, {}};
  static long units(long k) { return (k + EACH - 1) / EACH; }
};
template <> struct Product<Nibbles32> : BlockProduct<Nibbles32> {};
template <> struct Product<Bytes32> : BlockProduct<Bytes32> {};
template <> struct Product<BytesLeast32> : BlockProduct<BytesLeast32> {};
template <> struct Product<NibblesK> : BlockProduct<NibblesK> {};
template <> struct Product<BytesK> : BlockProduct<BytesK> {};
template <> struct Product<BytesLeastK> : BlockProduct<BytesLeastK> {};

// A group of M rows, `size` apart, by that of sixteen outputs, number `at` of its struct.
template <int M, class B>
inline void add_group(const B *w, long at, const Inputs *x, long size, Floats (&sums)[M][SPLIT]) {
  using P = Product<B>;
  constexpr long PARTS = GROUP / P::SHARE, STEPS = P::SHARE / 4;
  for (long lane = 0; lane < TOGETHER; lane += LANES) {
    Floats totals[M];
    for (long part = 0; part < PARTS; part++) {
      Dots<P::WIDE> dots[M];
#pragma GCC unroll 8
      for (long step = 0; step < STEPS; step++) {
        auto numbers = P::number(w, (at * PARTS + part) * STEPS + step, lane);
        for (int m = 0; m < M; m++) dots[m].add(numbers, four_of(x[m * size].numbers + 4 * (part * STEPS + step)));
      }
      Floats scale = P::scale(w, at * PARTS + part, lane);
      for (int m = 0; m < M; m++) {
        const Inputs &input = x[m * size];
        Floats whole = __builtin_convertvector(dots[m].total(PARTS == 1 ? input.all : input.surplus[part]), Floats);
        totals[m] = part ? fused(whole, scale, totals[m]) : whole * scale;
      }
    }
    for (int m = 0; m < M; m++) {
      Floats &sum = sums[m][lane / LANES];
      sum = fused(totals[m], all(x[m * size].unit), sum);
    }
    if constexpr (P::LEAST)
      for (long part = 0; part < PARTS; part++) {
        Floats least = P::least(w, at * PARTS + part, lane);
        for (int m = 0; m < M; m++) {
          Floats &sum = sums[m][lane / LANES];
          sum = fused(all(PARTS == 1 ? x[m * size].sum : x[m * size].sums[part]), least, sum);
        }
      }
  }
}

// M rows against the outputs from..to, as `strip` for other weights; `from` is a multiple of sixteen.
template <int M, class B>
void strip(const Linear<B> &p, long row, long from, long to, const Fetch &fetch, float *totals, long width) {
  using P = Product<B>;
  long count = P::units(p.k), first = count * fetch.part / fetch.parts, last = count * (fetch.part + 1) / fetch.parts;
  for (long n = from; n < to; n += TOGETHER) {
    const B *w = p.w + n / TOGETHER * count;
    const Inputs *x = p.x + row * p.size;
    long ahead = n < fetch.until ? fetch.near : fetch.far;
    Floats sums[M][SPLIT] = {};
    for (long unit = 0; unit < count; unit++, w++) {
      if (unit >= first && unit < last && ahead)
        for (long line = 0; line < long(sizeof(B)); line += 64)
          __builtin_prefetch(reinterpret_cast<const char *>(w) + line + ahead, 0, 2);
      for (long at = 0; at < P::EACH / GROUP; at++, x++)
        add_group<M, B>(w, at, x, p.size, sums);
    }
    for (int m = 0; m < M; m++) std::memcpy(totals + m * width + n - from, sums[m], sizeof sums[m]);
  }
}

// Matrices of a layer that are in different layouts, and have their input in common.
struct AnyBlocks;
template <> struct Product<AnyBlocks> : BlockInput {};

// f of the weights at an address, in the type of their layout.
template <class F> void in_layout(int64_t layout, const void *weights, const F &f) {
  switch (layout) {
  case NIBBLES32: return f(static_cast<const Nibbles32 *>(weights));
  case BYTES32: return f(static_cast<const Bytes32 *>(weights));
  case BYTES_LEAST32: return f(static_cast<const BytesLeast32 *>(weights));
  case NIBBLES_K: return f(static_cast<const NibblesK *>(weights));
  case BYTES_K: return f(static_cast<const BytesK *>(weights));
  case BYTES_LEAST_K: return f(static_cast<const BytesLeastK *>(weights));
  }
}

} // namespace
