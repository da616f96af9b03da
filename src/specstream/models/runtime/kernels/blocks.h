// Weights in the blocks of GGUF files, multiplied as they are: w = scale q + least, q an integer of few bits.
//
// All formats are kept in five layouts (blocks.py makes them), to the value. Sixty-four neighbours are a part: four groups
// of sixteen, of which two or all four have scales of their own. Their order there is two of the first group, two of the
// second, of the third, of the fourth, then the next two of each: so lane i of a vector of products belongs to group i % 4
// at every level, and a vector of four scales, repeated, fits them all.
#pragma once

#include "linear.h"

namespace {

// Q4_0, Q4_1. Byte i holds number i below and number i + 32 above. All scales are float16.
struct Nibbles32 {
  uint16_t scales[2], least[2];
  uint8_t numbers[32];
};
// Q8_0, Q5_0, IQ4_NL.
struct Bytes32 {
  uint16_t scales[2];
  int8_t numbers[64];
};
// Q5_1.
struct BytesLeast32 {
  uint16_t scales[2], least[2];
  int8_t numbers[64];
};
// Q4_K: a part's scales are scale scales[0..1], what is added least scales[2..3]: `least` is below zero where others say min.
struct NibblesK {
  uint16_t scale, least;
  uint8_t scales[4][4], numbers[4][32];
};
// Q2_K, Q3_K, Q5_K, Q6_K: four of each in a part.
struct BytesK {
  uint16_t scale, least;
  int8_t scales[4][4];
  uint8_t leasts[4][4];
  int8_t numbers[4][64];
};

// Which of them a matrix is in.
enum Layout : int64_t { NIBBLES32, BYTES32, BYTES_LEAST32, NIBBLES_K, BYTES_K };

inline Floats two_and_two(Quad of) { return repeated(Quad{of[0], of[0], of[1], of[1]}); }

// The input of all of them: integers of 16 bits in the order above, and behind each part the sum of every lane as a float.
struct BlockInput {
  using X = int16_t;
  using Sum = Floats;
  static constexpr Tiles TILES = INT_TILES;
  static constexpr long PART = 64, LONGEST = 256, SHORTS = PART / (2 * LANES), WIDTH = PART + 2 * LANES;
  static long at(long i) { return i / PART * WIDTH; }
  static long size(long k) { return at((k + LONGEST - 1) / LONGEST * LONGEST); }
  template <class From> static float prepare(const From *from, long k, X *to) {
    thread_local std::vector<X> row;
    row.assign((k + LONGEST - 1) / LONGEST * LONGEST, 0);
    float unit = quantise(from, k, row.data());
    for (size_t i = 0; i < row.size(); i += PART) {
      X *part = to + at(i);
      for (int pair = 0; pair < 8; pair++)
        for (int group = 0; group < 4; group++) std::memcpy(part + 8 * pair + 2 * group, &row[i + 16 * group + 2 * pair], 4);
      Ints lanes = {};
      for (long v = 0; v < SHORTS; v++) lanes = dot_neighbours(lanes, load_shorts(part + v * 2 * LANES), Shorts{} + 1);
      Floats sums = __builtin_convertvector(lanes, Floats);
      std::memcpy(part + PART, &sums, sizeof sums);
    }
    return unit;
  }
  static Floats finish(Floats totals, Floats, float unit, Floats bias) { return fused(totals, Floats{} + unit, bias); }
};

// A product with weights in layout B, all of whose parts have COUNT numbers together.
template <class B, long COUNT, bool ADDED> struct BlockProduct : BlockInput {
  static constexpr bool LEAST = ADDED;
  static constexpr long STEP = COUNT, EACH = COUNT, PARTS = COUNT / PART;
  struct Part {
    Shorts numbers[SHORTS];
    Floats scales, least;
  };
  static void add(Sum &sum, const X *x, const Part &w) {
    Ints dot = {};
    for (long i = 0; i < SHORTS; i++) dot = dot_neighbours(dot, load_shorts(x + i * 2 * LANES), w.numbers[i]);
    sum = fused(__builtin_convertvector(dot, Floats), w.scales, sum);
    if constexpr (LEAST) {
      Floats sums;
      std::memcpy(&sums, x + PART, sizeof sums);
      sum = fused(sums, w.least, sum);
    }
  }
  static void unpack(const uint8_t *nibbles, Part &part) {
    for (long i = 0; i < SHORTS / 2; i++) {
      Nibbles some;
      std::memcpy(&some, nibbles + i * 2 * LANES, sizeof some);
      part.numbers[i] = widened(some) & 15;
      part.numbers[SHORTS / 2 + i] = widened(some) >> 4;
    }
  }
  static void unpack(const int8_t *bytes, Part &part) {
    for (long i = 0; i < SHORTS; i++) part.numbers[i] = load_shorts(bytes + i * 2 * LANES);
  }
};

template <> struct Product<Nibbles32> : BlockProduct<Nibbles32, 64, true> {
  static Part part(const Nibbles32 *w, long) {
    Part part;
    unpack(w->numbers, part);
    Quad both = halves(w->scales); // and the two behind them
    part.scales = two_and_two(both);
    part.least = two_and_two(Quad{both[2], both[3]});
    return part;
  }
};

template <> struct Product<Bytes32> : BlockProduct<Bytes32, 64, false> {
  static Part part(const Bytes32 *w, long) {
    Part part;
    unpack(w->numbers, part);
    part.scales = two_and_two(halves(w->scales));
    return part;
  }
};

template <> struct Product<BytesLeast32> : BlockProduct<BytesLeast32, 64, true> {
  static Part part(const BytesLeast32 *w, long) {
    Part part;
    unpack(w->numbers, part);
    Quad both = halves(w->scales);
    part.scales = two_and_two(both);
    part.least = two_and_two(Quad{both[2], both[3]});
    return part;
  }
};

template <> struct Product<NibblesK> : BlockProduct<NibblesK, 256, true> {
  static Part part(const NibblesK *w, long at) {
    Part part;
    unpack(w->numbers[at], part);
    Quad units = halves(&w->scale), both = four(w->scales[at]) * Quad{units[0], units[0], units[1], units[1]};
    part.scales = two_and_two(both);
    part.least = two_and_two(Quad{both[2], both[3]});
    return part;
  }
};

template <> struct Product<BytesK> : BlockProduct<BytesK, 256, true> {
  static Part part(const BytesK *w, long at) {
    Part part;
    unpack(w->numbers[at], part);
    Quad units = halves(&w->scale);
    part.scales = repeated(four(w->scales[at]) * units[0]);
    part.least = repeated(four(w->leasts[at]) * units[1]);
    return part;
  }
};

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
