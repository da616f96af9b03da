// As many floats at a time as a register holds: one source for AVX512, AVX2 and NEON.
//
// What vectors of GCC and Clang say well is written with them. Where a multiplication and an addition are fused it is
// written out (`fused`), and the compiler fuses none by itself (-ffp-contract=off): its choice would be made anew for
// every shape of loop, and with it the bits of a row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

// The levels, each compiled by options of its own (environment.py), and how wide a register is there.
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define LEVEL "x86-64-v4-bf16"
#elif defined(__AVX512VNNI__)
#define LEVEL "x86-64-v4-vnni"
#elif defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define LEVEL "x86-64-v4"
#elif defined(__AVX2__) && defined(__FMA__)
#define LEVEL "x86-64-v3"
#elif defined(__aarch64__)
#define LEVEL "aarch64"
#else
#error "the kernels are written for AVX2 with FMA, for AVX512 and for NEON"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BW__)
constexpr int REGISTER = 64; // bytes
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
constexpr long LANES = REGISTER / 4;

typedef float Floats __attribute__((vector_size(REGISTER)));
typedef int32_t Ints __attribute__((vector_size(REGISTER)));
typedef uint32_t Words __attribute__((vector_size(REGISTER)));
typedef int16_t Shorts __attribute__((vector_size(REGISTER)));
typedef uint16_t Halves __attribute__((vector_size(REGISTER / 2)));
typedef int8_t Bytes __attribute__((vector_size(REGISTER / 2)));
typedef uint8_t Nibbles __attribute__((vector_size(REGISTER / 2)));
typedef float Quad __attribute__((vector_size(16)));

// What each level has an instruction for, and compilers find none or a slow one by themselves:
// - fused: a b + c, rounded once
// - widened: to twice the size
// - narrowed: the lower halves
// - dot_pairs: sum[i] + the sum of the two products at 2 i and 2 i + 1, or of two others, as exact as 32 bits are
// - dot_neighbours: sum[i] + the sum of the products at 2 i and 2 i + 1
// - sum: of a vector's lanes, always in the same order
// - sums: of LANES vectors, in their order, each added up as `sum` adds: to the bit, at a third of the price. Inlined, or
//   the vectors would go through memory.
// - repeated: four floats as often as a register holds them, or shorts, each of four bytes twice or of two bytes four times
// - halves: four float16 as floats; some_halves: as many as a register holds, those behind `count` 0
// - in_turn: of four times sixteen shorts two of each, then the next two
// - floats: of bytes; doubled: of half as many bytes, each twice
#if defined(__AVX512BW__)
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Words widened(Halves halves) { return (Words)_mm512_cvtepu16_epi32((__m256i)halves); }
inline Shorts widened(Bytes bytes) { return (Shorts)_mm512_cvtepi8_epi16((__m256i)bytes); }
inline Shorts widened(Nibbles nibbles) { return (Shorts)_mm512_cvtepu8_epi16((__m256i)nibbles); }
inline Halves narrowed(Words words) { return (Halves)_mm512_cvtepi32_epi16((__m512i)words); }
inline Ints dot_pairs(Ints sum, Shorts x, Shorts w) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#else
  return sum + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#endif
}
inline Ints dot_neighbours(Ints sum, Shorts x, Shorts w) { return dot_pairs(sum, x, w); }
inline Floats repeated(Quad quad) { return (Floats)_mm512_broadcast_f32x4((__m128)quad); }
inline Shorts repeated(__m128i eight) { return (Shorts)_mm512_broadcast_i32x4(eight); }
inline Floats some_halves(const uint16_t *from, long count) {
  __mmask16 mask = count >= LANES ? 0xffff : (1u << count) - 1;
  return (Floats)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}
inline Floats floats(__m128i bytes) { return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
inline float sum(Floats lanes) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)lanes), _mm512_extractf32x8_ps((__m512)lanes, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  return (four[0] + four[2]) + (four[1] + four[3]);
}
__attribute__((always_inline)) inline Floats sums(const Floats (&of)[LANES]) {
  __m512 eight[8], four[4], two[2]; // of 2, 4 and 8 vectors, with as many lanes left of each
  for (int i = 0; i < 8; i++) { // in the order in which the last step leaves them: vectors 0, 4, 8, 12, 1, ...
    __m512 a = (__m512)of[i % 2 * 8 + i / 2], b = (__m512)of[i % 2 * 8 + i / 2 + 4];
    eight[i] = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    __m512 a = eight[2 * i], b = eight[2 * i + 1];
    four[i] = _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
  }
  for (int i = 0; i < 2; i++) {
    __m512 a = four[2 * i], b = four[2 * i + 1];
    two[i] = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
  }
  return (Floats)(_mm512_shuffle_ps(two[0], two[1], 0x88) + _mm512_shuffle_ps(two[0], two[1], 0xdd));
}
#elif defined(__AVX2__)
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline Words widened(Halves halves) { return (Words)_mm256_cvtepu16_epi32((__m128i)halves); }
inline Shorts widened(Bytes bytes) { return (Shorts)_mm256_cvtepi8_epi16((__m128i)bytes); }
inline Shorts widened(Nibbles nibbles) { return (Shorts)_mm256_cvtepu8_epi16((__m128i)nibbles); }
inline Halves narrowed(Words words) { // less than 65536
  __m256i all = (__m256i)words;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
inline Ints dot_pairs(Ints sum, Shorts x, Shorts w) { return sum + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w); }
inline Ints dot_neighbours(Ints sum, Shorts x, Shorts w) { return dot_pairs(sum, x, w); }
inline Floats repeated(Quad quad) { return (Floats)_mm256_set_m128((__m128)quad, (__m128)quad); }
inline Shorts repeated(__m128i eight) { return (Shorts)_mm256_broadcastsi128_si256(eight); }
inline Floats some_halves(const uint16_t *from, long count) {
  __m128i halves = _mm_setzero_si128();
  std::memcpy(&halves, from, count >= LANES ? sizeof halves : count * sizeof *from);
  return (Floats)_mm256_cvtph_ps(halves);
}
inline Floats floats(__m128i bytes) { return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline float sum(Floats lanes) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)lanes), _mm256_extractf128_ps((__m256)lanes, 1));
  return (four[0] + four[1]) + (four[2] + four[3]);
}
__attribute__((always_inline)) inline Floats sums(const Floats (&of)[LANES]) {
  __m256 four[4]; // of 2 vectors, with 4 lanes left of each
  for (int i = 0; i < 4; i++) {
    __m256 a = (__m256)of[i], b = (__m256)of[i + 4];
    four[i] = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
  }
  return (Floats)_mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
}
#else
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline Words widened(Halves halves) { return (Words)vmovl_u16((uint16x4_t)halves); }
inline Shorts widened(Bytes bytes) { return (Shorts)vmovl_s8((int8x8_t)bytes); }
inline Shorts widened(Nibbles nibbles) { return (Shorts)vmovl_u8((uint8x8_t)nibbles); }
inline Halves narrowed(Words words) { return (Halves)vmovn_u32((uint32x4_t)words); }
inline Ints dot_pairs(Ints sum, Shorts x, Shorts w) {
  int16x8_t a = (int16x8_t)x, b = (int16x8_t)w;
  return (Ints)vmlal_high_s16(vmlal_s16((int32x4_t)sum, vget_low_s16(a), vget_low_s16(b)), a, b);
}
inline Ints dot_neighbours(Ints sum, Shorts x, Shorts w) {
  int16x8_t a = (int16x8_t)x, b = (int16x8_t)w;
  return sum + (Ints)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
inline Floats repeated(Quad quad) { return (Floats)quad; }
inline Quad halves(const uint16_t *from) { return (Quad)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
template <class T> inline Shorts repeated(const T *from, int share) {
  Shorts shorts;
  for (int i = 0; i < 8; i++) shorts[i] = from[i / 2 / share];
  return shorts;
}
inline Floats some_halves(const uint16_t *from, long count) {
  uint16_t four[4] = {};
  std::memcpy(four, from, count >= LANES ? sizeof four : count * sizeof *from);
  return (Floats)halves(four);
}
inline void in_turn(const int16_t *from, int16_t *to) {
  for (int i = 0; i < 2; i++) {
    int32x4x4_t fours;
    for (int group = 0; group < 4; group++) fours.val[group] = vreinterpretq_s32_s16(vld1q_s16(from + 16 * group + 8 * i));
    vst4q_s32(reinterpret_cast<int32_t *>(to + 32 * i), fours);
  }
}
inline Floats floats(const uint8_t *from) { return Floats{float(from[0]), float(from[1]), float(from[2]), float(from[3])}; }
inline Floats doubled(const uint8_t *from) { return Floats{float(from[0]), float(from[0]), float(from[1]), float(from[1])}; }
inline float sum(Floats lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }
__attribute__((always_inline)) inline Floats sums(const Floats (&of)[LANES]) {
  float32x4_t two[2];
  for (int i = 0; i < 2; i++) two[i] = vpaddq_f32((float32x4_t)of[2 * i], (float32x4_t)of[2 * i + 1]);
  return (Floats)vpaddq_f32(two[0], two[1]);
}
#endif

#if !defined(__aarch64__)
inline Quad halves(const uint16_t *from) { return (Quad)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))); }
inline void in_turn(const int16_t *from, int16_t *to) {
  for (int i = 0; i < 2; i++) {
    __m128i a[4], b[4];
    for (int group = 0; group < 4; group++)
      a[group] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 16 * group + 8 * i));
    for (int half = 0; half < 2; half++) {
      b[2 * half] = _mm_unpacklo_epi32(a[2 * half], a[2 * half + 1]);
      b[2 * half + 1] = _mm_unpackhi_epi32(a[2 * half], a[2 * half + 1]);
    }
    __m128i *out = reinterpret_cast<__m128i *>(to + 32 * i);
    for (int half = 0; half < 2; half++) {
      _mm_storeu_si128(out + 2 * half, _mm_unpacklo_epi64(b[half], b[half + 2]));
      _mm_storeu_si128(out + 2 * half + 1, _mm_unpackhi_epi64(b[half], b[half + 2]));
    }
  }
}
template <int COUNT> inline __m128i some_bytes(const void *from) {
  __m128i bytes = _mm_setzero_si128();
  std::memcpy(&bytes, from, COUNT);
  return bytes;
}
inline Floats floats(const uint8_t *from) { return floats(some_bytes<LANES>(from)); }
inline Floats doubled(const uint8_t *from) {
  __m128i bytes = some_bytes<LANES / 2>(from);
  return floats(_mm_unpacklo_epi8(bytes, bytes));
}
inline Shorts repeated(const int8_t *from, int share) {
  __m128i shorts = _mm_cvtepi8_epi16(some_bytes<4>(from)), twice = _mm_unpacklo_epi16(shorts, shorts);
  return repeated(share == 1 ? twice : _mm_unpacklo_epi32(twice, twice));
}
inline Shorts repeated(const uint8_t *from, int share) {
  __m128i shorts = _mm_cvtepu8_epi16(some_bytes<4>(from)), twice = _mm_unpacklo_epi16(shorts, shorts);
  return repeated(share == 1 ? twice : _mm_unpacklo_epi32(twice, twice));
}
#endif

// bfloat16 is carried as uint16_t: the upper half of a float.
float widen(uint16_t value) {
  uint32_t word = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}
float widen(float value) { return value; }

void narrow(float value, float *out) { *out = value; }
void narrow(float value, uint16_t *out) { // to nearest, ties to even, as PyTorch rounds
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  bool nan = (word & 0x7fffffff) > 0x7f800000;
  *out = static_cast<uint16_t>(nan ? (word >> 16) | 64 : (word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline Floats load(const float *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline Floats load(const uint16_t *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  Words words = widened(halves) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

// The first `count` lanes; the others are 0. A head or a row may be shorter than a vector.
template <class T> inline Floats load(const T *from, long count) {
  if (count >= LANES) return load(from);
  T some[LANES] = {};
  std::memcpy(some, from, count * sizeof(T));
  return load(some);
}

// As a number of type T would be, still in floats. The same rounding as `narrow`, NaN stays NaN.
template <class T> inline Floats rounded(Floats lanes) { return lanes; }
template <> inline Floats rounded<uint16_t>(Floats lanes) {
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  Words nan = (Words)((words & 0x7fffffffu) > 0x7f800000u);
  words = (nan & (words | 0x400000u)) | (~nan & (words + 0x7fffu + ((words >> 16) & 1u)));
  words &= 0xffff0000u;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

inline void store(Floats lanes, float *to) { std::memcpy(to, &lanes, sizeof lanes); }
inline void store(Floats lanes, uint16_t *to) {
  lanes = rounded<uint16_t>(lanes);
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  Halves halves = narrowed(words >> 16);
  std::memcpy(to, &halves, sizeof halves);
}
template <class T> inline void store(Floats lanes, T *to, long count) {
  if (count >= LANES) return store(lanes, to);
  T some[LANES];
  store(lanes, some);
  std::memcpy(to, some, count * sizeof(T));
}

// A step is 32 neighbours: as many vectors of floats as that takes. In bf16 each two of them are the even ones and the odd
// ones of their neighbours: that takes a shift and a mask, where neighbours would have to be moved across lanes.
constexpr long STEP = 32, PARTS = STEP / LANES;

inline Floats load_part(const uint16_t *step, long part) {
  Words pairs;
  std::memcpy(&pairs, step + part / 2 * 2 * LANES, sizeof pairs);
  return (Floats)(part % 2 ? pairs & 0xffff0000u : pairs << 16);
}
inline Floats load_part(const float *step, long part) { return load(step + part * LANES); }

// Back in their order.
inline void store_pairs(Floats even, Floats odd, uint16_t *to) {
  Words pairs = (Words)rounded<uint16_t>(even) >> 16 | (Words)rounded<uint16_t>(odd);
  std::memcpy(to, &pairs, sizeof pairs);
}
inline void store_pairs(Floats first, Floats second, float *to) {
  store(first, to);
  store(second, to + LANES);
}

inline long whole_steps(long count) { return (count + STEP - 1) / STEP * STEP; }

// An input row in the order of load_part, padded with zeros to whole steps.
template <class T> inline void spread(const T *from, long count, float *to) {
  for (long i = 0; i < count; i += STEP) {
    T rest[STEP] = {};
    if (count - i < STEP) std::memcpy(rest, from + i, (count - i) * sizeof(T));
    const T *step = count - i < STEP ? rest : from + i;
    for (long part = 0; part < PARTS; part++) store(load_part(step, part), to + i + part * LANES);
  }
}

inline Shorts load_shorts(const int16_t *from) {
  Shorts shorts;
  std::memcpy(&shorts, from, sizeof shorts);
  return shorts;
}
inline Shorts load_shorts(const int8_t *from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return widened(bytes);
}

// A row as integers, padded with zeros to whole steps; returns what one unit is worth. They are as large as 16 bits
// allow, and at most `most`; without it small enough that no lane can overflow over products with bytes.
template <class T> inline float quantise(const T *from, long count, int16_t *to, long most = 0) {
  long padded = whole_steps(count);
  if (!most) most = 2147483647L / (127 * (padded / LANES));
  most = most < 32767 ? most : 32767;
  Floats sizes = {};
  float largest = 0.0f;
  long i = 0;
  for (; i + LANES <= count; i += LANES) {
    Floats values = load(from + i), size = values < 0 ? -values : values;
    sizes = size > sizes ? size : sizes;
  }
  for (; i < count; i++) largest = std::fmax(largest, std::fabs(widen(from[i])));
  for (long lane = 0; lane < LANES; lane++) largest = std::fmax(largest, sizes[lane]);
  float inverse = largest > 0 ? most / largest : 0.0f;
  for (i = 0; i < count; i++) {
    float value = widen(from[i]) * inverse;
    to[i] = static_cast<int16_t>(value + (value < 0 ? -0.5f : 0.5f));
  }
  for (; i < padded; i++) to[i] = 0;
  return largest / most;
}

// exp in one formula for every lane, so that an element's bits do not depend on where in a vector it stands.
__attribute__((always_inline)) inline Floats exponential(Floats x) {
  const Floats lowest = Floats{} - 87.0f;
  x = x < lowest ? lowest : x;
  Floats scaled = x * 1.44269504f;
  Ints power = __builtin_convertvector(scaled + (scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
  Floats whole = __builtin_convertvector(power, Floats);
  Floats rest = fused(whole, Floats{} + 2.12194440e-4f, fused(whole, Floats{} - 0.693359375f, x));
  Floats sum = Floats{} + 1.9875691500e-4f;
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    sum = fused(sum, rest, Floats{} + next);
  sum = fused(sum * rest, rest, rest) + 1.0f;
  Ints bits = (power + 127) << 23;
  Floats two;
  std::memcpy(&two, &bits, sizeof two);
  return sum * two;
}

} // namespace
