// Sixteen floats at a time, in GCC's and Clang's portable vectors: one source for AVX2, AVX512 and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr long LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(32)));

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
#if defined(__AVX512F__) // GCC 12 makes four instructions of the conversion
  Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16;
#else
  Words words = __builtin_convertvector(halves, Words) << 16;
#endif
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
#if defined(__AVX512F__)
  Halves halves = (Halves)_mm512_cvtepi32_epi16((__m512i)(words >> 16));
#else
  Halves halves = __builtin_convertvector(words >> 16, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}
template <class T> inline void store(Floats lanes, T *to, long count) {
  if (count >= LANES) return store(lanes, to);
  T some[LANES];
  store(lanes, some);
  std::memcpy(to, some, count * sizeof(T));
}

// Two vectors of weights from 32 neighbours. In bf16 the even ones and the odd ones: that takes a shift and a mask,
// where neighbours would have to be moved across lanes.
inline void load_step(const uint16_t *from, Floats &even, Floats &odd) {
  Words pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  Words low = pairs << 16, high = pairs & 0xffff0000u;
  std::memcpy(&even, &low, sizeof low);
  std::memcpy(&odd, &high, sizeof high);
}
inline void load_step(const float *from, Floats &first, Floats &second) {
  first = load(from);
  second = load(from + LANES);
}

// An input row in the order of load_step, padded with zeros to whole steps.
template <class T> inline void spread(const T *from, long count, float *to) {
  Floats first, second;
  for (long i = 0; i < count; i += 2 * LANES) {
    if (count - i >= 2 * LANES) {
      load_step(from + i, first, second);
    } else {
      T rest[2 * LANES] = {};
      std::memcpy(rest, from + i, (count - i) * sizeof(T));
      load_step(rest, first, second);
    }
    std::memcpy(to + i, &first, sizeof first);
    std::memcpy(to + i + LANES, &second, sizeof second);
  }
}

inline Shorts load_shorts(const int16_t *from) {
  Shorts shorts;
  std::memcpy(&shorts, from, sizeof shorts);
  return shorts;
}
inline Shorts widen_step(const int8_t *from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Shorts);
}

// sum[i] += x[2 i] * w[2 i] + x[2 i + 1] * w[2 i + 1]
inline Ints dot_pairs(Ints sum, Shorts x, Shorts w) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#else
  Ints xs, ws;
  std::memcpy(&xs, &x, sizeof xs);
  std::memcpy(&ws, &w, sizeof ws);
  return sum + (xs >> 16) * (ws >> 16) + ((xs << 16) >> 16) * ((ws << 16) >> 16);
#endif
}

// A row as integers, padded with zeros to whole steps; returns what one unit is worth. They are as large as 16 bits
// allow, and small enough that no lane can overflow over products with bytes.
template <class T> inline float quantise(const T *from, long count, int16_t *to) {
  long padded = (count + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
  long most = 2147483647L / (127 * (padded / LANES));
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

// The lower half of a vector and its upper half, added.
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
inline Half fold(Floats whole) { // through registers, where copies would go through memory
  return __builtin_shufflevector(whole, whole, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(whole, whole, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Quarter fold(Half whole) {
  return __builtin_shufflevector(whole, whole, 0, 1, 2, 3) + __builtin_shufflevector(whole, whole, 4, 5, 6, 7);
}
#else
template <class Part, class Whole> inline Part halved(Whole whole) {
  Part lower, upper;
  std::memcpy(&lower, &whole, sizeof lower);
  std::memcpy(&upper, reinterpret_cast<const char *>(&whole) + sizeof lower, sizeof upper);
  return lower + upper;
}
inline Half fold(Floats whole) { return halved<Half>(whole); }
inline Quarter fold(Half whole) { return halved<Quarter>(whole); }
#endif

inline float sum(Floats lanes) {
  Quarter four = fold(fold(lanes));
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sums of sixteen vectors, in their order, each added up as `sum` adds: to the bit, at a third of the price.
inline Floats sums(const Floats (&of)[LANES]) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  Floats eight[8], four[4], two[2]; // of 2, 4 and 8 vectors, with as many lanes left of each
  for (int i = 0; i < 8; i++) { // in the order in which the last step leaves them: vectors 0, 4, 8, 12, 1, ...
    Floats a = of[i % 2 * 8 + i / 2], b = of[i % 2 * 8 + i / 2 + 4];
    eight[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; i++) {
    Floats a = eight[2 * i], b = eight[2 * i + 1];
    four[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
              __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; i++) {
    Floats a = four[2 * i], b = four[2 * i + 1];
    two[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
             __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  return __builtin_shufflevector(two[0], two[1], 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(two[0], two[1], 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#else
  Floats found;
  for (int i = 0; i < LANES; i++) found[i] = sum(of[i]);
  return found;
#endif
}

// a b + c, rounded once whatever the compiler would choose.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  for (long lane = 0; lane < LANES; lane++) c[lane] = std::fma(a[lane], b[lane], c[lane]);
  return c;
#endif
}

// exp in one formula for every lane, so that an element's bits do not depend on where in a vector it stands.
inline Floats exponential(Floats x) {
  const Floats lowest = Floats{} - 87.0f;
  x = x < lowest ? lowest : x;
  Floats scaled = x * 1.44269504f;
  Ints power = __builtin_convertvector(scaled + (scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
  Floats whole = __builtin_convertvector(power, Floats);
  Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats sum = Floats{} + 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  Ints bits = (power + 127) << 23;
  Floats two;
  std::memcpy(&two, &bits, sizeof two);
  return sum * two;
}

} // namespace
