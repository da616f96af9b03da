// Weights in the blocks of GGUF files, multiplied as they are: w = scale q + least, q an integer of few bits.
//
// All formats are kept in five layouts (blocks.py makes them), to the value. Sixty-four neighbours are a part: four groups
// of sixteen. Their order there is two of the first group, two of the second, of the third, of the fourth, then the next
// two of each: so lane i of a vector of products belongs to group i % 4 at every level, and scales that are different for
// groups, or for each two of them, are one short pattern, repeated.
//
// What is added, `least`, meets sums of the input that all weights have in common: a product of a sixteenth of the size, or
// less. Scales of the K formats are integers; their numbers are multiplied by them before they meet the input, and 256
// products are summed as integers, where the others go to floats for each 64. These have the leasts of an output behind all
// its parts, two float16 for each, and are padded to whole parts.
#pragma once

#include "linear.h"

namespace {

constexpr long PART = 64, SUPER = 256, GROUPS = SUPER / 16;

// Q4_0, Q4_1. Byte i holds number i below and number i + 32 above. All scales are float16.
struct Nibbles32 {
  uint16_t scales[2];
  uint8_t numbers[32];
};
// Q8_0, Q5_0, IQ4_NL.
struct Bytes32 {
  uint16_t scales[2];
  int8_t numbers[64];
};
// Q5_1.
struct BytesLeast32 {
  uint16_t scales[2];
  int8_t numbers[64];
};
// Q4_K: a scale is scale scales[i], what is added least leasts[i]: `least` is below zero where others say min.
struct NibblesK {
  uint16_t scale, least;
  uint8_t scales[8], leasts[8], numbers[4][32];
};
// Q2_K, Q3_K, Q5_K, Q6_K: with sixteen of each.
struct BytesK {
  uint16_t scale, least;
  int8_t scales[16];
  uint8_t leasts[16];
  int8_t numbers[4][64];
};

// Which of them a matrix is in.
enum Layout : int64_t { NIBBLES32, BYTES32, BYTES_LEAST32, NIBBLES_K, BYTES_K };

inline float half(const uint16_t &from) {
  uint16_t four[4] = {from};
  return halves(four)[0];
}

// The input of all of them: 256 integers of 16 bits in the order above, then the sums of their groups as floats, and so on;
// behind all of them the sums of each 32.
struct BlockInput {
  using X = int16_t;
  using Sum = Floats;
  static constexpr Tiles TILES = INT_TILES;
  static constexpr long STEP = SUPER, SHORTS = PART / (2 * LANES), WIDTH = SUPER + 2 * GROUPS;
  // The largest product of a number and its integer scale has 12 bits, and those of a lane may not overflow.
  static constexpr long MOST = 2147483647L / (4096 * SUPER / LANES);
  static long at(long i) { return i / SUPER * WIDTH + i % SUPER; }
  static long sums_at(long k) { return at((k + SUPER - 1) / SUPER * SUPER); }
  static long size(long k) { return sums_at(k) + (k + 16 * PART - 1) / (16 * PART) * PART; }
  template <class From> static float prepare(const From *from, long k, X *to) {
    thread_local std::vector<X> row;
    row.assign((k + SUPER - 1) / SUPER * SUPER, 0);
    float unit = quantise(from, k, row.data(), MOST);
    std::memset(to + sums_at(k), 0, (size(k) - sums_at(k)) * sizeof(X)); // read to the end, by whole registers
    for (size_t i = 0; i < row.size(); i += PART) {
      X *part = to + at(i);
      in_turn(&row[i], part);
      Ints lanes = {};
      for (long v = 0; v < SHORTS; v++) lanes = dot_neighbours(lanes, load_shorts(part + v * 2 * LANES), Shorts{} + 1);
      int32_t each[LANES];
      std::memcpy(each, &lanes, sizeof each);
      Quad sums;
      for (long group = 0; group < 4; group++) {
        int32_t sum = 0;
        for (long lane = group; lane < LANES; lane += 4) sum += each[lane];
        sums[group] = float(sum);
      }
      std::memcpy(to + at(i / SUPER * SUPER) + SUPER + i % SUPER / 8, &sums, sizeof sums);
      float both[2] = {sums[0] + sums[1], sums[2] + sums[3]};
      std::memcpy(to + sums_at(k) + i / 16, both, sizeof both);
    }
    return unit;
  }
  static Floats finish(Floats totals, Floats, float unit, Floats bias) { return fused(totals, Floats{} + unit, bias); }
};

struct Numbers {
  Shorts of[BlockInput::SHORTS];
};
inline Numbers unpacked(const uint8_t *nibbles) {
  Numbers numbers;
  for (long i = 0; i < BlockInput::SHORTS / 2; i++) {
    Nibbles some;
    std::memcpy(&some, nibbles + i * 2 * LANES, sizeof some);
    numbers.of[i] = widened(some) & 15;
    numbers.of[BlockInput::SHORTS / 2 + i] = widened(some) >> 4;
  }
  return numbers;
}
inline Numbers unpacked(const int8_t *bytes) {
  Numbers numbers;
  for (long i = 0; i < BlockInput::SHORTS; i++) numbers.of[i] = load_shorts(bytes + i * 2 * LANES);
  return numbers;
}
inline Numbers times(Numbers numbers, Shorts scales) {
  for (Shorts &each : numbers.of) each *= scales;
  return numbers;
}
inline Ints dots(Ints sum, const int16_t *x, const Numbers &w) {
  for (long i = 0; i < BlockInput::SHORTS; i++) sum = dot_neighbours(sum, load_shorts(x + i * 2 * LANES), w.of[i]);
  return sum;
}
inline Floats load_floats(const void *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

// Parts of 64 with two scales, of a struct each; WITH: whether leasts stand behind them.
template <class B, bool WITH> struct Part32 : BlockInput {
  static constexpr long EACH = PART;
  static constexpr bool BEHIND = WITH, INTEGERS = false;
  static long parts(long k) { return (k + PART - 1) / PART; }
  static long units(long k) { return parts(k) + (WITH ? (4 * parts(k) + long(sizeof(B)) - 1) / long(sizeof(B)) : 0); }
  static const uint16_t *leasts(const B *output, long k) { return reinterpret_cast<const uint16_t *>(output + parts(k)); }
  static const auto &numbers(const B *w, long part) { return w[part].numbers; }
  static Floats scales(const B *w, long part) {
    Quad both = halves(w[part].scales); // and what stands behind them
    return repeated(Quad{both[0], both[0], both[1], both[1]});
  }
  // Of 16 neighbours, the group of that number.
  static float scale(const B *output, long group) { return half(output[group / 4].scales[group / 2 % 2]); }
  static float least(const B *output, long group, long k) { return WITH ? half(leasts(output, k)[group / 2]) : 0; }
};
template <class T> struct Product;
template <> struct Product<Nibbles32> : Part32<Nibbles32, true> {};
template <> struct Product<Bytes32> : Part32<Bytes32, false> {};
template <> struct Product<BytesLeast32> : Part32<BytesLeast32, true> {};

// Blocks of 256 with integer scales for COUNT groups, or twos of them.
template <class B, long COUNT> struct PartK : BlockInput {
  static constexpr long EACH = SUPER, SHARE = GROUPS / COUNT;
  static constexpr bool BEHIND = false, INTEGERS = true;
  static long units(long k) { return (k + SUPER - 1) / SUPER; }
  static const auto &numbers(const B *w, long part) { return w->numbers[part]; }
  static Shorts multipliers(const B *w, long part) { return repeated(w->scales + 4 * part / SHARE, SHARE); }
  static Floats unit(const B *w) { return Floats{} + half(w->scale); }
  static float scale(const B *output, long group) {
    const B &w = output[group / GROUPS];
    return half(w.scale) * w.scales[group % GROUPS / SHARE];
  }
  static float least(const B *output, long group, long) {
    const B &w = output[group / GROUPS];
    return half(w.least) * w.leasts[group % GROUPS / SHARE];
  }
  static Floats leasts(const B *w, long lanes) {
    return half(w->least) * (SHARE == 1 ? floats(w->leasts + lanes) : doubled(w->leasts + lanes / 2));
  }
};
template <> struct Product<NibblesK> : PartK<NibblesK, 8> {};
template <> struct Product<BytesK> : PartK<BytesK, 16> {};

// What a part of an output's weights is to be multiplied by, and its scales where its dots go to floats at once.
template <class B> struct Prepared {
  Numbers numbers;
  Floats scales;
  Prepared() = default;
  Prepared(const B *w, long part) : numbers(unpacked(Product<B>::numbers(w, part))) {
    if constexpr (Product<B>::INTEGERS) numbers = times(numbers, Product<B>::multipliers(w, part));
    else scales = Product<B>::scales(w, part);
  }
  void add(const int16_t *x, Ints &all) const { all = dots(all, x, numbers); }
  void add(const int16_t *x, Floats &sum) const {
    sum = fused(__builtin_convertvector(dots(Ints{}, x, numbers), Floats), scales, sum);
  }
};

// A part of M rows of x, `size` apart, against those of N outputs, `stride` apart. What is needed again stays in registers.
template <int M, int N, class B, class Sum>
inline void add_part(const B *w, long stride, const int16_t *x, long size, long part, Sum (&sums)[M][N]) {
  if constexpr (M < N) {
    for (int n = 0; n < N; n++) {
      Prepared<B> each(w + n * stride, part);
      for (int m = 0; m < M; m++) each.add(x + m * size + part * PART, sums[m][n]);
    }
  } else {
    Prepared<B> all[N];
    for (int n = 0; n < N; n++) all[n] = Prepared<B>(w + n * stride, part);
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) all[n].add(x + m * size + part * PART, sums[m][n]);
  }
}

// The same of up to 256 elements, `parts` parts.
template <int M, int N, class B>
inline void block(const B *w, long stride, const int16_t *x, long size, long parts, Floats (&sums)[M][N]) {
  using P = Product<B>;
  if constexpr (P::INTEGERS) {
    Ints all[M][N] = {};
#pragma GCC unroll 4
    for (long part = 0; part < SUPER / PART; part++) add_part<M, N>(w, stride, x, size, part, all);
    for (int n = 0; n < N; n++) {
      Floats unit = P::unit(w + n * stride);
      for (int m = 0; m < M; m++) sums[m][n] = fused(__builtin_convertvector(all[m][n], Floats), unit, sums[m][n]);
      for (long i = 0; i < GROUPS; i += LANES) {
        Floats leasts = P::leasts(w + n * stride, i);
        for (int m = 0; m < M; m++) sums[m][n] = fused(load_floats(x + m * size + SUPER + 2 * i), leasts, sums[m][n]);
      }
    }
  } else {
#pragma GCC unroll 4
    for (long part = 0; part < parts; part++) add_part<M, N>(w, stride, x, size, part, sums);
  }
}

template <int M, int N, class B> struct BlockTile {
  using P = Product<B>;
  static void run(const Linear<B> &p, long row, long from, long begin, long end, const Fetch &fetch, Floats (&sums)[M][N]) {
    long stride = P::units(p.k), first = p.k * fetch.part / fetch.parts, last = p.k * (fetch.part + 1) / fetch.parts;
    long ahead = from < fetch.until ? fetch.near : fetch.far;
    for (long i = begin; i < end; i += SUPER) {
      const B *w = p.w + from * stride + i / P::EACH;
      long distance = i >= first && i < last ? ahead : 0;
      for (int n = 0; n < N; n++)
        for (long line = 0; line < SUPER / P::EACH * long(sizeof(B)); line += 64)
          __builtin_prefetch(reinterpret_cast<const char *>(w + n * stride) + line + distance, 0, 2);
      block<M, N>(w, stride, p.x + row * p.size + P::at(i), p.size, SUPER / PART, sums);
    }
  }
  // The rest of an output's parts, and its leasts.
  static void tail(const Linear<B> &p, long row, long from, Floats (&sums)[M][N]) {
    long stride = P::units(p.k), whole = p.k / SUPER * SUPER;
    const B *w = p.w + from * stride;
    const int16_t *x = p.x + row * p.size;
    if (whole < p.k) block<M, N>(w + whole / P::EACH, stride, x + P::at(whole), p.size, (p.k - whole) / PART, sums);
    if constexpr (P::BEHIND)
      for (int n = 0; n < N; n++)
        for (long i = 0; i < p.k / 32; i += LANES) {
          Floats leasts = some_halves(P::leasts(w + n * stride, p.k) + i, p.k / 32 - i);
          for (int m = 0; m < M; m++)
            sums[m][n] = fused(load_floats(x + m * p.size + P::sums_at(p.k) + 2 * i), leasts, sums[m][n]);
        }
  }
};
template <int M, int N> struct Tile<M, N, Nibbles32> : BlockTile<M, N, Nibbles32> {};
template <int M, int N> struct Tile<M, N, Bytes32> : BlockTile<M, N, Bytes32> {};
template <int M, int N> struct Tile<M, N, BytesLeast32> : BlockTile<M, N, BytesLeast32> {};
template <int M, int N> struct Tile<M, N, NibblesK> : BlockTile<M, N, NibblesK> {};
template <int M, int N> struct Tile<M, N, BytesK> : BlockTile<M, N, BytesK> {};

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
  }
}

} // namespace
