// Sixteen floats at a time, in GCC's and Clang's portable vectors: one source for AVX2, AVX512 and NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

namespace {

constexpr long LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

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
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

template <class Part, class Whole> inline Part fold(Whole whole) {
  Part lower, upper;
  std::memcpy(&lower, &whole, sizeof lower);
  std::memcpy(&upper, reinterpret_cast<const char *>(&whole) + sizeof lower, sizeof upper);
  return lower + upper;
}

inline float sum(Floats lanes) {
  auto four = fold<Quarter>(fold<Half>(lanes));
  return (four[0] + four[2]) + (four[1] + four[3]);
}

} // namespace
