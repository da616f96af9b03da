// The tokens of the largest logits, in the order of their logits: most numbers are compared with the least of those found so
// far, a few vectors at a time, and nothing else. Equal ones are in the order of their places; a NaN is larger than all. In
// place of the first stands NO_CHOICE where its logit is NaN or infinite.

#include "lanes.h"

namespace {

constexpr long AT_ONCE = 4 * LANES, NO_CHOICE = -1;

bool above(float a, float b) { return a > b || (a != a && b == b); }

template <class T> void likeliest(const T *logits, long vocab, long k, float *largest, int64_t *tokens) {
  long found = 0;
  for (long first = 0; first < vocab; first += AT_ONCE) {
    long last = first + AT_ONCE < vocab ? first + AT_ONCE : vocab;
    if (found == k && last - first == AT_ONCE) {
      Floats least = all(largest[k - 1]);
      Ints below = (Ints)(load(logits + first) <= least);
      for (long i = first + LANES; i < last; i += LANES) below &= (Ints)(load(logits + i) <= least);
      if (everywhere(below)) continue;
    }
    for (long i = first; i < last; i++) {
      float value = load(logits + i, 1)[0];
      if (found == k && !above(value, largest[k - 1])) continue;
      long place = found < k ? found++ : k - 1;
      for (; place > 0 && above(value, largest[place - 1]); place--) {
        largest[place] = largest[place - 1];
        tokens[place] = tokens[place - 1];
      }
      largest[place] = value;
      tokens[place] = i;
    }
  }
  if (!std::isfinite(largest[0])) tokens[0] = NO_CHOICE;
}

template <class T> void rows(const T *logits, const int64_t *places, int64_t *tokens, long count, long vocab, long k) {
  std::vector<float> largest(k);
  for (long row = 0; row < count; row++) likeliest(logits + places[row] * vocab, vocab, k, largest.data(), tokens + row * k);
}

} // namespace

// Of rows of `vocab` logits, those at some places; k is at most vocab.
#define LIKELIEST(name, T)                                                                                             \
  extern "C" void likeliest_##name(const T *logits, const int64_t *places, int64_t *tokens, long count, long vocab,   \
                                   long k) {                                                                           \
    rows(logits, places, tokens, count, vocab, k);                                                                     \
  }
LIKELIEST(bf16, uint16_t)
LIKELIEST(f32, float)
