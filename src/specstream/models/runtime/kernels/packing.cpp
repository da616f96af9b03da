// Weights into the structs that products read: blocks of GGUF files as they are, or any weights rounded to four or eight
// bits. What a block's bits mean is ggml's definition (ggml-common.h).

#include "blocks.h"

#include <type_traits>

namespace {

// Formats of weights; those of files by ggml's names. As in blocks.py.
enum Kind : int64_t { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, F32, BF16 };

uint16_t half_of(float value) {
#if defined(__aarch64__)
  __fp16 half = value;
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
#else
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#endif
}
template <class T> T at(const uint8_t *from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
uint16_t half_at(const uint8_t *from, long i = 0) { return at<uint16_t>(from + 2 * i); }

// Numbers of one output, one in a byte, into a struct: where `four` of blocks.h finds them.
void put(uint8_t (&line)[64], long lane, uint32_t four) { std::memcpy(line + 4 * lane, &four, sizeof four); }
template <long K> void put(Nibbles<K> &to, long lane, const uint8_t *numbers) {
  for (long i = 0; i < K / 8; i++, numbers += 8)
    put(to.low[i], lane, (at<uint32_t>(numbers) & 0x0f0f0f0f) | (at<uint32_t>(numbers + 4) & 0x0f0f0f0f) << 4);
}
template <long K> void put(Sixes<K> &to, long lane, const uint8_t *numbers) {
  for (long i = 0; i < K / 16; i++, numbers += 16)
    for (long line = 0; line < 3; line++)
      put(to.lines[i][line], lane, at<uint32_t>(numbers + 4 * line) | (at<uint32_t>(numbers + 12) >> 2 * line & 0x03030303) << 6);
}
template <long K> void put(Bytewise<K> &to, long lane, const uint8_t *numbers) {
  for (long i = 0; i < K / 4; i++) put(to.all[i], lane, at<uint32_t>(numbers + 4 * i));
}

constexpr uint64_t ONES = 0x0101010101010101; // a 1 in each byte

// Fields of BITS bits: of each WIDTH bytes the lowest ones, then the next. They are added to numbers, LEFT bits up. As many
// bytes as a word holds are shifted at a time; the mask leaves none of a neighbour's bits.
template <int BITS, long WIDTH, int LEFT = 0> void split(const uint8_t *from, long bytes, uint8_t *__restrict numbers) {
  using Word = std::conditional_t<WIDTH % 8 == 0, uint64_t, uint32_t>;
  const Word mask = Word(ONES * ((1 << BITS) - 1));
  for (const uint8_t *end = from + bytes; from < end; from += WIDTH)
    for (int shift = 0; shift < 8; shift += BITS, numbers += WIDTH)
      for (long i = 0; i < WIDTH; i += sizeof(Word)) {
        Word word = at<Word>(numbers + i) | Word((at<Word>(from + i) >> shift & mask) << LEFT);
        std::memcpy(numbers + i, &word, sizeof word);
      }
}

// A format: its struct, the bytes of its blocks, and how one is read: scales go into a lane of a struct, numbers, as they are
// stored there, into bytes that are 0.
template <class B, Layout OF, long SIZE> struct Format {
  using Struct = B;
  static constexpr Layout LAYOUT = OF;
  static constexpr long BYTES = SIZE;
};
template <Kind> struct Blocks;
// A weight is scale (number - offset).
template <class B> void scales_of(const uint8_t *from, int offset, B &to, long lane) {
  to.scales[lane] = half_at(from), to.leasts[lane] = half_of(half(half_at(from)) * float(-offset));
}
template <class B> void scale_and_least(const uint8_t *from, B &to, long lane) {
  to.scales[lane] = half_at(from), to.leasts[lane] = half_at(from, 1);
}
void five_bits(const uint8_t *from, uint8_t *numbers) { // four bytes of fifth bits, then the others
  split<4, 16>(from + 4, 16, numbers);
  for (long i = 0; i < 4; i++) {
    uint64_t apart = from[i] * ONES & 0x8040201008040201; // each bit in a byte of its own
    uint64_t word = at<uint64_t>(numbers + 8 * i) | ((apart + 127 * ONES) >> 7 & ONES) << 4;
    std::memcpy(numbers + 8 * i, &word, sizeof word);
  }
}
template <> struct Blocks<Q4_0> : Format<Nibbles32, NIBBLES32, 18> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    scales_of(from, 8, to, lane);
    split<4, 16>(from + 2, 16, numbers);
  }
};
template <> struct Blocks<Q4_1> : Format<Nibbles32, NIBBLES32, 20> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    scale_and_least(from, to, lane);
    split<4, 16>(from + 4, 16, numbers);
  }
};
template <> struct Blocks<Q5_0> : Format<Sixes32, SIXES32, 22> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    scales_of(from, 16, to, lane);
    five_bits(from + 2, numbers);
  }
};
template <> struct Blocks<Q5_1> : Format<Sixes32, SIXES32, 24> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    scale_and_least(from, to, lane);
    five_bits(from + 4, numbers);
  }
};
template <> struct Blocks<Q8_0> : Format<Bytes32, BYTES32, 34> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    to.scales[lane] = half_at(from);
    for (long i = 0; i < GROUP; i++) numbers[i] = from[2 + i] ^ 128;
  }
};
template <> struct Blocks<IQ4_NL> : Format<Bytes32, BYTES32, 18> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    constexpr int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    to.scales[lane] = half_at(from);
    split<4, 16>(from + 2, 16, numbers);
    for (long i = 0; i < GROUP; i++) numbers[i] = uint8_t(levels[numbers[i]] + 128);
  }
};

// What a min counts is taken off, so its unit is below zero.
template <class B> void units_of(const uint8_t *from, B &to, long lane) {
  to.unit[lane] = half_at(from), to.least[lane] = half_at(from, 1) ^ 0x8000;
}
// The eight scales and eight mins of six bits in the twelve bytes of Q4_K and Q5_K; each for REPEATS of the struct's.
template <long REPEATS, class B> void six_bits(const uint8_t *from, B &to, long lane) {
  for (long i = 0; i < 8; i++) {
    const uint8_t low = from[i % 4], high = from[4 + i % 4], above = from[8 + i % 4];
    for (long j = i * REPEATS; j < (i + 1) * REPEATS; j++) {
      to.scales[j][lane] = i < 4 ? low & 63 : (above & 15) | (low >> 2 & 48);
      to.leasts[j][lane] = i < 4 ? high & 63 : above >> 4 | (high >> 2 & 48);
    }
  }
}
template <> struct Blocks<Q2_K> : Format<SixesLeastK, SIXES_LEAST_K, 84> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    units_of(from + 80, to, lane);
    for (long i = 0; i < 16; i++) to.scales[i][lane] = from[i] & 15, to.leasts[i][lane] = from[i] >> 4;
    split<2, 32>(from + 16, 64, numbers);
  }
};
template <> struct Blocks<Q3_K> : Format<SixesK, SIXES_K, 110> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    uint8_t scales[16] = {};
    split<4, 8>(from + 96, 8, scales);
    split<2, 4, 4>(from + 104, 4, scales);
    to.unit[lane] = half_at(from + 108);
    for (long i = 0; i < 16; i++) to.scales[i][lane] = int8_t(scales[i] - 32);
    split<2, 32>(from + 32, 64, numbers);
    split<1, 32, 2>(from, 32, numbers);
    for (long i = 0; i < SUPER; i++) numbers[i] += 32 - 4; // of what the struct takes off and the format
  }
};
template <> struct Blocks<Q4_K> : Format<NibblesK, NIBBLES_K, 144> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    units_of(from, to, lane);
    six_bits<1>(from + 4, to, lane);
    split<4, 32>(from + 16, 128, numbers);
  }
};
template <> struct Blocks<Q5_K> : Format<SixesLeastK, SIXES_LEAST_K, 176> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    units_of(from, to, lane);
    six_bits<2>(from + 4, to, lane);
    split<4, 32>(from + 48, 128, numbers);
    split<1, 32, 4>(from + 16, 32, numbers);
  }
};
template <> struct Blocks<Q6_K> : Format<SixesK, SIXES_K, 210> {
  static void read(const uint8_t *from, Struct &to, long lane, uint8_t *numbers) {
    to.unit[lane] = half_at(from + 208);
    for (long i = 0; i < 16; i++) to.scales[i][lane] = int8_t(from[192 + i]);
    split<4, 64>(from, 128, numbers);
    split<2, 32, 4>(from + 128, 64, numbers);
  }
};

// Rows as floats, zeros behind them up to whole groups.
template <class T> struct FloatRows {
  const T *from;
  long columns;
  void operator()(long row, float *to) const {
    for (long i = 0; i < columns; i += LANES) store(load(from + row * columns + i, columns - i), to + i);
  }
};
template <class F> struct BlockRows {
  using B = typename F::Struct;
  using P = Product<B>;
  const uint8_t *blocks;
  long columns;
  void operator()(long row, float *to) const {
    const uint8_t *block = blocks + row * (columns / P::EACH) * F::BYTES;
    for (long i = 0; i < columns; i += P::EACH, block += F::BYTES) {
      B scales;
      uint8_t numbers[P::EACH] = {};
      F::read(block, scales, 0, numbers);
      for (long first = 0; first < P::EACH; first += P::SHARE) {
        float scale = P::one_scale(scales, first / P::SHARE, 0), least = P::one_least(scales, first / P::SHARE, 0);
        for (long j = first; j < first + P::SHARE; j++) to[i + j] = float(numbers[j] - P::OFFSET) * scale + least;
      }
    }
  }
};

// Always in the same order, whatever a register holds: weights are the same at every level.
constexpr long VECTORS = GROUP / LANES;
float sum_of(const Floats (&lanes)[VECTORS]) {
  Quad quads[GROUP / 4];
  std::memcpy(quads, lanes, sizeof quads);
  for (long count = GROUP / 8; count; count /= 2)
    for (long i = 0; i < count; i++) quads[i] += quads[i + count];
  return (quads[0][0] + quads[0][1]) + (quads[0][2] + quads[0][3]);
}
Floats nearest(Floats value, float least, float most) { // an integer, ties to even
  const float bits = 12582912; // 1.5 times 2^23: a float has no fraction there
  value = (value + bits) - bits;
  value = value < least ? all(least) : value;
  return value > most ? all(most) : value;
}
uint16_t scale_of(float wanted) {
  const float least = 6.103515625e-5f; // float16 has fewer bits below
  return half_of(wanted < least ? least : wanted);
}
void put_vector(Floats whole, uint8_t *to) {
  Few bytes = narrowed(__builtin_convertvector(whole, Ints));
  std::memcpy(to, &bytes, sizeof bytes);
}

// Largest of a group, and NaN where one is none: maxima would pass over it.
float largest(const Floats (&values)[VECTORS]) {
  Floats most = values[0], none = {};
  for (const Floats &each : values) most = each > most ? each : most, none += each - each;
  return largest(most) + sum(none);
}

// Integers for a group: of eight bits by its largest weight; of four those of the least squared error, where a scale covers all
// of the group's range or less of it: small weights gain what the largest lose.
void round(const Floats (&weights)[VECTORS], Bytes32 &to, long lane, uint8_t *numbers) {
  Floats sizes[VECTORS];
  for (long i = 0; i < VECTORS; i++) sizes[i] = weights[i] < 0 ? -weights[i] : weights[i];
  to.scales[lane] = scale_of(largest(sizes) / 127);
  float unit = half(to.scales[lane]);
  for (long i = 0; i < VECTORS; i++) put_vector(nearest(weights[i] / unit, -127, 127), numbers + i * LANES);
  for (long i = 0; i < GROUP; i++) numbers[i] ^= 128;
}
void round(const Floats (&weights)[VECTORS], Nibbles32 &to, long lane, uint8_t *numbers) {
  Floats opposite[VECTORS];
  for (long i = 0; i < VECTORS; i++) opposite[i] = -weights[i];
  float low = -largest(opposite), range = largest(weights) - low, best = 0;
  for (double share : {1.0, 0.9, 0.8}) {
    uint16_t scale = scale_of(range * float(share / 15)), least = half_of(low + range * float((1 - share) / 2));
    float unit = half(scale), below = half(least);
    Floats found[VECTORS], errors[VECTORS];
    for (long i = 0; i < VECTORS; i++) {
      found[i] = nearest((weights[i] - below) / unit, 0, 15);
      Floats off = found[i] * unit + below - weights[i];
      errors[i] = off * off;
    }
    float error = sum_of(errors);
    if (share < 1 && !(error < best)) continue;
    best = error, to.scales[lane] = scale, to.leasts[lane] = least;
    for (long i = 0; i < VECTORS; i++) put_vector(found[i], numbers + i * LANES);
  }
}

// `fill` makes a lane of a unit of sixteen outputs; those behind the last row stay 0.
template <class B, class F> void pack(B *to, long rows, long columns, int threads, const F &fill) {
  const long units = Product<B>::units(columns);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long first = 0; first < rows; first += TOGETHER) {
    B *mine = to + first / TOGETHER * units;
    std::memset(static_cast<void *>(mine), 0, units * sizeof(B));
    for (long lane = 0; lane < TOGETHER && first + lane < rows; lane++) fill(first + lane, lane, mine, units);
  }
}
template <class B, class R> void pack_rounded(const R &read, B *to, long rows, long columns, int threads) {
  pack(to, rows, columns, threads, [&](long row, long lane, B *mine, long units) {
    thread_local std::vector<char> memory;
    float *values = scratch<float>(memory, units * GROUP);
    std::memset(values + (units - 1) * GROUP, 0, GROUP * sizeof(float));
    read(row, values);
    for (long unit = 0; unit < units; unit++) {
      uint8_t numbers[GROUP];
      Floats weights[VECTORS];
      std::memcpy(weights, values + unit * GROUP, sizeof weights);
      round(weights, mine[unit], lane, numbers);
      put(mine[unit].numbers, lane, numbers);
    }
  });
}
template <class R> void pack_in(int64_t layout, const R &read, void *to, long rows, long columns, int threads) {
  if (layout == NIBBLES32) pack_rounded(read, static_cast<Nibbles32 *>(to), rows, columns, threads);
  else pack_rounded(read, static_cast<Bytes32 *>(to), rows, columns, threads);
}

// A format's blocks into its own layout as they are, into others rounded.
template <class F> void pack_blocks(int64_t layout, const uint8_t *from, void *to, long rows, long columns, int threads) {
  using B = typename F::Struct;
  if (layout != F::LAYOUT)
    return pack_in(layout, BlockRows<F>{from, columns}, to, rows, columns, threads);
  pack(static_cast<B *>(to), rows, columns, threads, [&](long row, long lane, B *mine, long units) {
    for (long unit = 0; unit < units; unit++) {
      uint8_t numbers[Product<B>::EACH] = {};
      F::read(from + (row * units + unit) * F::BYTES, mine[unit], lane, numbers);
      put(mine[unit].numbers, lane, numbers);
    }
  });
}

} // namespace

// [rows, columns] of a kind into a layout, rows padded to whole sixteens: the layout of the kind, or NIBBLES32 or BYTES32.
// Columns are a multiple of the kind's block.
extern "C" void pack(int64_t kind, const void *from, int64_t layout, void *to, long rows, long columns, int threads) {
  switch (kind) {
#define BLOCKS(kind)                                                                                                   \
  case kind: return pack_blocks<Blocks<kind>>(layout, static_cast<const uint8_t *>(from), to, rows, columns, threads);
  BLOCKS(Q4_0) BLOCKS(Q4_1) BLOCKS(Q5_0) BLOCKS(Q5_1) BLOCKS(Q8_0) BLOCKS(IQ4_NL)
  BLOCKS(Q2_K) BLOCKS(Q3_K) BLOCKS(Q4_K) BLOCKS(Q5_K) BLOCKS(Q6_K)
  case F32: return pack_in(layout, FloatRows<float>{static_cast<const float *>(from), columns}, to, rows, columns, threads);
  case BF16: return pack_in(layout, FloatRows<uint16_t>{static_cast<const uint16_t *>(from), columns}, to, rows, columns, threads);
  }
}
