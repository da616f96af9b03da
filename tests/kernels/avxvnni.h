// The one instruction that AVX-VNNI adds to AVX2, written out in C++: included before everything else, it lets the kernels
// of the level x86-64-v3-vnni compile and run without it. To make it differ is what the test of the levels has to notice.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace emulated {
inline __m256i dpbusd(__m256i sum, __m256i w, __m256i x) {
  int32_t sums[8];
  uint8_t without_sign[32];
  int8_t with_sign[32];
  std::memcpy(sums, &sum, 32), std::memcpy(without_sign, &w, 32), std::memcpy(with_sign, &x, 32);
  for (int i = 0; i < 32; i++) sums[i / 4] += int(without_sign[i]) * int(with_sign[i]);
  std::memcpy(&sum, sums, 32);
  return sum;
}
} // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dpbusd
#define __AVXVNNI__ 1
