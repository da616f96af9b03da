#include "attention.h"

namespace {

template <class T> void attention(const Attention &a) {
#pragma omp parallel num_threads(a.threads)
  attend<T>(a);
}

} // namespace

// dim must be a multiple of 16.
extern "C" void attention_bf16(const Attention *a) { attention<uint16_t>(*a); }
extern "C" void attention_f32(const Attention *a) { attention<float>(*a); }
