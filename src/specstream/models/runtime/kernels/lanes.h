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
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define LEVEL "x86-64-v3-vnni"
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

// Whether one instruction adds up the products of four bytes (`dot_fours`).
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512BW__)) || defined(__aarch64__)
#define DOT_FOURS
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
typedef uint8_t Bytes __attribute__((vector_size(REGISTER)));
typedef float Quad __attribute__((vector_size(16)));
typedef int8_t Few __attribute__((vector_size(REGISTER / 4))); // as many as there are lanes

// What each level has an instruction for, and compilers find none or a slow one by themselves:
// - fused: a b + c, rounded once
// - widened: to twice the size
// - narrowed: the lower halves, or the lowest bytes
// - sum: of a vector's lanes, always in the same order
// - sums: of LANES vectors, in their order, each added up as `sum` adds: to the bit, at a third of the price. Inlined, or
//   the vectors would go through memory.
// - halves: float16 as floats; ints: bytes as integers; floats: the same as floats
// - everywhere: whether all bits of all lanes are set, where those of a lane are alike
// - dot_fours: sum[i] + the sum of the four products at 4 i to 4 i + 3; or without such an instruction dot_bytes: of two
//   at 2 i and 2 i + 1, in 16 bits, of which w has no sign, and dot_shorts: the same of shorts, in 32
// - signed_as: bytes x, the other way round where those of w are below zero; without_sign: how large bytes with one are
#if defined(__AVX512BW__)
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Words widened(Halves halves) { return (Words)_mm512_cvtepu16_epi32((__m256i)halves); }
inline Halves narrowed(Words words) { return (Halves)_mm512_cvtepi32_epi16((__m512i)words); }
inline Few narrowed(Ints ints) { return (Few)_mm512_cvtepi32_epi8((__m512i)ints); }
inline Floats halves(const uint16_t *from) { return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
inline Ints ints(const uint8_t *from) { return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)); }
inline Ints ints(const int8_t *from) { return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)); }
inline bool everywhere(Ints lanes) { return _mm512_movepi32_mask((__m512i)lanes) == 0xffff; }
#if defined(DOT_FOURS)
inline Ints dot_fours(Ints sum, Bytes w, Bytes x) { return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
#else
inline Bytes without_sign(Bytes w) { return (Bytes)_mm512_abs_epi8((__m512i)w); }
inline Bytes signed_as(Bytes x, Bytes w) {
  return (Bytes)_mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask((__m512i)w), __m512i{}, (__m512i)x);
}
inline Shorts dot_bytes(Bytes w, Bytes x) { return (Shorts)_mm512_maddubs_epi16((__m512i)w, (__m512i)x); }
inline Ints dot_shorts(Shorts a, Shorts b) { return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#endif
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
inline Halves narrowed(Words words) { // less than 65536
  __m256i all = (__m256i)words;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
inline Floats halves(const uint16_t *from) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
inline Ints ints(const uint8_t *from) { return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
inline Ints ints(const int8_t *from) { return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
inline bool everywhere(Ints lanes) { return _mm256_movemask_ps((__m256)lanes) == 0xff; }
#if defined(DOT_FOURS)
inline Ints dot_fours(Ints sum, Bytes w, Bytes x) { return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x); }
#else
inline Bytes without_sign(Bytes w) { return (Bytes)_mm256_abs_epi8((__m256i)w); }
inline Bytes signed_as(Bytes x, Bytes w) { return (Bytes)_mm256_sign_epi8((__m256i)x, (__m256i)w); }
inline Shorts dot_bytes(Bytes w, Bytes x) { return (Shorts)_mm256_maddubs_epi16((__m256i)w, (__m256i)x); }
inline Ints dot_shorts(Shorts a, Shorts b) { return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif
inline Few narrowed(Ints ints) { // of eight bits
  __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)ints), _mm256_extracti128_si256((__m256i)ints, 1));
  return (Few)_mm_cvtsi128_si64(_mm_packs_epi16(shorts, shorts));
}
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
inline Halves narrowed(Words words) { return (Halves)vmovn_u32((uint32x4_t)words); }
inline Few narrowed(Ints ints) { return __builtin_convertvector(ints, Few); }
inline Floats halves(const uint16_t *from) { return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
inline Ints ints(const uint8_t *from) { return Ints{from[0], from[1], from[2], from[3]}; }
inline Ints ints(const int8_t *from) { return Ints{from[0], from[1], from[2], from[3]}; }
inline bool everywhere(Ints lanes) { return vminvq_u32((uint32x4_t)lanes) != 0; }
inline Ints dot_fours(Ints sum, Bytes w, Bytes x) { return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
inline float sum(Floats lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }
__attribute__((always_inline)) inline Floats sums(const Floats (&of)[LANES]) {
  float32x4_t two[2];
  for (int i = 0; i < 2; i++) two[i] = vpaddq_f32((float32x4_t)of[2 * i], (float32x4_t)of[2 * i + 1]);
  return (Floats)vpaddq_f32(two[0], two[1]);
}
#endif

template <class T> inline Floats floats(const T *bytes) { return __builtin_convertvector(ints(bytes), Floats); }

// Made here and in this order: compilers would hoist what is cheap, or add in a tree, and then have no registers for it.
template <class V> inline V here(V value) {
#if defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+v"(value));
#endif
  return value;
}

inline Floats all(float value) { return value - Floats{}; } // with + the compiler would have to add: -0 + 0 is 0

// Of a vector's lanes.
inline float largest(Floats lanes) {
  Quad quads[LANES / 4];
  std::memcpy(quads, &lanes, sizeof quads);
  for (long i = 1; i < LANES / 4; i++) quads[0] = quads[i] > quads[0] ? quads[i] : quads[0];
  float a = quads[0][0] > quads[0][1] ? quads[0][0] : quads[0][1], b = quads[0][2] > quads[0][3] ? quads[0][2] : quads[0][3];
  return a > b ? a : b;
}
inline int32_t sum(Ints lanes) {
  typedef int32_t Four __attribute__((vector_size(16)));
  Four fours[LANES / 4];
  std::memcpy(fours, &lanes, sizeof fours);
  for (long i = 1; i < LANES / 4; i++) fours[0] += fours[i];
  return fours[0][0] + fours[0][1] + fours[0][2] + fours[0][3];
}

// bfloat16 is carried as uint16_t: the upper half of a float.
inline void narrow(float value, float *out) { *out = value; }
inline void narrow(float value, uint16_t *out) { // to nearest, ties to even, as PyTorch rounds
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
