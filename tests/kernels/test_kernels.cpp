// Every kernel of the library against plain sums in double, and its promise about bits, without Python: so that it can be
// checked at every level, also for processors that are only emulated here. Linked to the kernels' own objects.
//
// Prints what is wrong and returns 1, or prints the level, how much was checked, and a digest of the products with weights
// in blocks and of packed weights, which is to be the same at every level.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
const char *specstream_level();

// As in attention.h and layer.cpp: what Python hands over.
struct Attention {
  const void *q, *k, *v;
  void *out;
  const int64_t *lengths, *starts;
  const int32_t *paths, *depths;
  int64_t rows, heads, kv_heads, nodes, dim, q_row, q_head, q_node, k_row, k_head, k_slot, v_row, v_head, v_slot, window;
  float scale, softcap;
  int64_t threads;
};
struct Matrix {
  const void *weights, *bias;
  int64_t outputs, inputs, layout;
};
struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const void *input_norm, *post_norm, *q_norm, *k_norm;
  int64_t heads, kv_heads, dim, window;
  float epsilon, scale;
};
struct Cache {
  void *keys, *values;
  int64_t row, head, slot;
};
struct Pass {
  const void *x, *cos, *sin;
  void *y;
  const int64_t *lengths, *starts;
  const int32_t *paths, *depths;
  void *const *kept;
  int64_t rows, nodes, threads;
};
#define KERNELS(name, T)                                                                                               \
  void linear_##name(const T *, const void *, const T *, T *, long, long, long, int);                                  \
  void likeliest_##name(const T *, const int64_t *, int64_t *, long, long, long);                                      \
  void layers_##name(const Layer *const *, const Cache *, const Pass *, long);
KERNELS(bf16, uint16_t)
KERNELS(f32, float)
#define IN_BLOCKS(name, T)                                                                                              \
  void linear_blocks_##name(const T *, const void *, int64_t, const T *, T *, long, long, long, int);                  \
  void rows_blocks_##name(const void *, int64_t, const int64_t *, T *, long, long);                                    \
  void layers_blocks_##name(const Layer *const *, const Cache *, const Pass *, long);
IN_BLOCKS(bf16, uint16_t)
IN_BLOCKS(f32, float)
void pack(int64_t, const void *, int64_t, void *, long, long, int);
void attention_bf16(const Attention *);
void attention_f32(const Attention *);
}

namespace {

using Numbers = std::vector<double>;
// Of a weight; all are the activations' own. Those in blocks are in the order of blocks.h; MIXED are some in each of them.
enum Bits { ALL, NIBBLES32, SIXES32, BYTES32, NIBBLES_K, SIXES_K, SIXES_LEAST_K, MIXED };
constexpr Bits BLOCKS[] = {NIBBLES32, SIXES32, BYTES32, NIBBLES_K, SIXES_K, SIXES_LEAST_K};

long checks, failures;
uint64_t digest = 14695981039346656037u; // FNV-1a

void digest_of(const void *bytes, long count) {
  for (long i = 0; i < count; i++) digest = (digest ^ static_cast<const uint8_t *>(bytes)[i]) * 1099511628211u;
}

// `what` makes the text, for a check that fails: numbers as text cost more than what is checked, an emulated processor most.
template <class What> void expect(bool right, const What &what) {
  checks++;
  if (!right && ++failures <= 20) std::printf("wrong: %s\n", what().c_str());
}

template <class... Parts> std::string text(const Parts &...parts) {
  std::string all;
  ((all += std::to_string(parts) + " "), ...);
  return all;
}

uint64_t seed = 1;
double chance() { // about normal
  double sum = 0;
  for (int i = 0; i < 4; i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    sum += double(seed >> 33) / double(1u << 31) - 0.5;
  }
  return sum * std::sqrt(3.0);
}

double value(float from) { return from; }
double value(uint16_t from) {
  uint32_t word = uint32_t(from) << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}
void set(float &to, double from) { to = float(from); }
void set(uint16_t &to, double from) {
  float rounded = float(from);
  uint32_t word;
  std::memcpy(&word, &rounded, sizeof word);
  to = uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
template <class T> std::vector<T> numbers(long count, double size = 1, double about = 0) {
  std::vector<T> made(count);
  for (T &each : made) set(each, about + size * chance());
  return made;
}
template <class T> constexpr double ROUNDING = sizeof(T) == 2 ? 1.0 / 256 : 1.0 / (1 << 23); // a half more than the last place
template <class T> bool same(const T *a, const T *b, long count) { return !std::memcmp(a, b, count * sizeof(T)); }

// A weight as the kernels take it, and what it stands for.
struct Weight {
  std::vector<char> bytes;
  Numbers values;
};

// A float16 of about that size, as it is stored.
uint16_t half(double about, double *value) {
  long power = std::lround(std::floor(std::log2(about))), rest = std::labs(std::lround(300 * chance())) % 1024;
  *value = std::ldexp(1 + rest / 1024.0, int(power));
  return uint16_t((power + 15) << 10 | rest);
}

// Weights in blocks: a field of a struct is `put` for sixteen outputs at a time, those behind the last are zeros.
Weight in_blocks(long n, long k, Bits bits, double size) {
  Weight made;
  made.values.resize(n * k);
  bool super = bits >= NIBBLES_K, nibbles = bits == NIBBLES32 || bits == NIBBLES_K;
  bool least = bits != BYTES32 && bits != SIXES_K, sign = bits == SIXES_K;
  long each = super ? 256 : 32, share = !super ? 32 : nibbles ? 32 : 16;
  long offset = bits == BYTES32 ? 128 : sign ? 32 : 0, most = nibbles ? 15 : bits == BYTES32 ? 255 : 63; // of what is stored
  auto put = [&](const void *from, long count) { made.bytes.insert(made.bytes.end(), (const char *)from, (const char *)from + count); };
  for (long first = 0; first < n; first += 16)
    for (long begin = 0; begin < k; begin += each) {
      double units[2][16], about = size / (nibbles ? 8 : most / 3.0) / (super ? 16 : 1);
      for (int field = 0; field < 1 + least; field++)
        for (int lane = 0; lane < 16; lane++) {
          uint16_t stored = half(field ? 4 * about : about, &units[field][lane]);
          if (field && super) stored |= 0x8000, units[field][lane] *= -1;
          put(&stored, 2);
        }
      std::vector<int> integers[2];
      for (int field = 0; super && field < 1 + least; field++)
        for (long i = 0; i < each / share * 16; i++) {
          int integer = int(std::labs(std::lround(20 * chance()))) % 60 + 1;
          if (!field && sign && i % 2) integer = -integer;
          char stored = char(integer);
          integers[field].push_back(integer), put(&stored, 1);
        }
      std::vector<long> numbers(each * 16);
      for (long i = 0; i < each * 16; i++) {
        long lane = i % 16, place = i / 16, at = place / share * 16 + lane, column = begin + place;
        long number = std::clamp(std::lround(most / 2.0 + most / 4.0 * chance()), 0l, most);
        double value = units[0][lane] * (super ? integers[0][at] : 1) * (number - offset);
        if (least) value += units[1][lane] * (super ? integers[1][at] : 1);
        numbers[i] = number;
        if (first + lane < n && column < k) made.values[(first + lane) * k + column] = value;
      }
      auto number = [&](long step, long i) { return numbers[(4 * step + i % 4) * 16 + i / 4]; };
      for (long step = 0; step < each / 4; step += nibbles ? 2 : bits == BYTES32 ? 1 : 4)
        for (long line = 0; line < (most == 63 ? 3 : 1); line++)
          for (long i = 0; i < 64; i++) {
            long above = nibbles ? number(step + 1, i) << 4 : most == 63 ? (number(step + 3, i) >> 2 * line & 3) << 6 : 0;
            uint8_t stored = uint8_t(number(step + line, i) | above);
            put(&stored, 1);
          }
    }
  return made;
}

template <class T> Weight weight(long n, long k, Bits bits, double size = 1) {
  if (bits != ALL) return in_blocks(n, k, bits, size);
  Weight made;
  made.values.resize(n * k);
  std::vector<T> numbers = ::numbers<T>(n * k, size);
  for (long i = 0; i < n * k; i++) made.values[i] = value(numbers[i]);
  made.bytes.assign((const char *)numbers.data(), (const char *)(numbers.data() + n * k));
  return made;
}

// An input as the kernels round it for weights in blocks: to 8 bits, with a unit for each 32; to 15 where that is large.
Numbers rounded(Numbers x) {
  long groups = (x.size() + 31) / 32;
  std::vector<float> largest(groups);
  float squares = 0;
  for (size_t i = 0; i < x.size(); i++) largest[i / 32] = std::max(largest[i / 32], std::fabs(float(x[i])));
  for (float each : largest) squares += each * each;
  for (size_t i = 0; i < x.size(); i++) {
    float most = largest[i / 32], levels = most * most * float(groups) > 2.25f * squares ? 127 * 128 : 127;
    float scaled = most > 0 ? float(x[i]) * (levels / most) : 0;
    x[i] = double(int(scaled + (scaled < 0 ? -0.5f : 0.5f))) * double(most / levels);
  }
  return x;
}

template <class T> void linear(Bits bits, const T *x, const Weight &w, const T *bias, T *y, long m, long n, long k, int threads) {
  const void *bytes = w.bytes.data();
  int64_t layout = bits - NIBBLES32;
  if constexpr (sizeof(T) == 2) {
    if (bits == ALL) linear_bf16(x, bytes, bias, y, m, n, k, threads);
    else linear_blocks_bf16(x, bytes, layout, bias, y, m, n, k, threads);
  } else {
    if (bits == ALL) linear_f32(x, bytes, bias, y, m, n, k, threads);
    else linear_blocks_f32(x, bytes, layout, bias, y, m, n, k, threads);
  }
}

template <class T> void check_linear(Bits bits, long n, long k) {
  const long most = 33, judged = 9; // one kernel makes each row alone: beyond some of them the formula says nothing new
  Weight w = weight<T>(n, k, bits);
  std::vector<T> x = numbers<T>(most * k), bias = numbers<T>(n), alone(most * n);
  for (size_t i = 7; i < x.size(); i += 101) set(x[i], 6 * value(x[i])); // outliers
  for (long row = 0; row < most; row++) linear(bits, &x[row * k], w, bias.data(), &alone[row * n], 1, n, k, 1);
  if (bits != ALL) digest_of(alone.data(), alone.size() * sizeof(T));
  for (long row = 0; row < judged; row++) {
    Numbers input(k);
    for (long i = 0; i < k; i++) input[i] = value(x[row * k + i]);
    if (bits != ALL) input = rounded(input);
    for (long column = 0; column < n; column++) {
      double sum = value(bias[column]), sizes = std::fabs(sum);
      for (long i = 0; i < k; i++) {
        double product = input[i] * w.values[column * k + i];
        sum += product;
        sizes += std::fabs(product);
      }
      // Long sums round at every addition.
      double allowed = ROUNDING<T> * std::fabs(sum) + 3e-6 * sizes;
      double got = value(alone[row * n + column]);
      expect(std::fabs(got - sum) <= allowed, [&] { return "linear " + text(sizeof(T), bits, n, k, row, column, got, sum); });
    }
  }
  for (long m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33})
    for (int threads : {1, 2}) {
      std::vector<T> y(m * n);
      linear(bits, x.data(), w, bias.data(), y.data(), m, n, k, threads);
      expect(same(y.data(), alone.data(), m * n), [&] { return "bits of linear " + text(sizeof(T), bits, n, k, m, threads); });
    }
}

// Rows of a matrix in blocks are its values, rounded where floats and T round.
template <class T> void check_rows(Bits bits, long n, long k) {
  Weight w = weight<T>(n, k, bits);
  std::vector<int64_t> of = {n - 1, 0, n / 2};
  std::vector<T> y(of.size() * k);
  if constexpr (sizeof(T) == 2) rows_blocks_bf16(w.bytes.data(), bits - NIBBLES32, of.data(), y.data(), of.size(), k);
  else rows_blocks_f32(w.bytes.data(), bits - NIBBLES32, of.data(), y.data(), of.size(), k);
  for (size_t row = 0; row < of.size(); row++)
    for (long i = 0; i < k; i++) {
      double truth = w.values[of[row] * k + i], got = value(y[row * k + i]);
      expect(std::fabs(got - truth) <= ROUNDING<T> * std::fabs(truth) + 1e-7,
             [&] { return "rows " + text(sizeof(T), bits, n, k, row, i, got, truth); });
    }
}

// Numbers rounded to four and to eight bits: as near as the largest and the least of a group allow, and zeros stay.
template <class T> void check_rounding(long n, long k) {
  std::vector<T> weights = numbers<T>(n * k);
  std::fill(weights.begin() + n / 2 * k, weights.begin() + (n / 2 + 1) * k, T(0));
  for (Bits bits : {NIBBLES32, BYTES32}) {
    long groups = (k + 31) / 32, levels = bits == BYTES32 ? 127 : 15;
    std::vector<char> packed((n + 15) / 16 * groups * 16 * (bits == BYTES32 ? 34 : 20));
    pack(sizeof(T) == 4 ? 11 : 12, weights.data(), bits - NIBBLES32, packed.data(), n, k, 2);
    digest_of(packed.data(), packed.size());
    std::vector<float> rows(n * k);
    std::vector<int64_t> all(n);
    for (long row = 0; row < n; row++) all[row] = row;
    rows_blocks_f32(packed.data(), bits - NIBBLES32, all.data(), rows.data(), n, k);
    for (long i = 0; i < n * k; i++) {
      double largest = 0, off = std::fabs(rows[i] - value(weights[i]));
      for (long j = i / k * k + i % k / 32 * 32, end = std::min(j + 32, (i / k + 1) * k); j < end; j++)
        largest = std::max(largest, std::fabs(value(weights[j])));
      // Of four bits, a scale may cover 0.8 of twice that, in the middle.
      double allowed = levels == 127 ? 0.51 * largest / 127 : 0.21 * largest + largest / 15;
      expect(off <= allowed, [&] { return "rounding " + text(sizeof(T), bits, n, k, i, off, largest); });
    }
  }
}

// Blocks of files are as they are in their own layout, and rounded in two more: their values are compared with gguf's in
// Python, here only their bytes at other levels. Kinds are in the order of packing.cpp.
void check_packing() {
  struct Kind {
    long columns, size, halves[2];
    Bits own;
  };
  const Kind kinds[] = {{32, 18, {0, 0}, NIBBLES32}, {32, 20, {0, 2}, NIBBLES32}, {32, 22, {0, 0}, SIXES32}, {32, 24, {0, 2}, SIXES32},
                        {32, 34, {0, 0}, BYTES32}, {32, 18, {0, 0}, BYTES32}, {256, 84, {80, 82}, SIXES_LEAST_K},
                        {256, 110, {108, 108}, SIXES_K}, {256, 144, {0, 2}, NIBBLES_K}, {256, 176, {0, 2}, SIXES_LEAST_K},
                        {256, 210, {208, 208}, SIXES_K}};
  const long n = 21, blocks = 3, sizes[] = {320, 448, 544, 2368, 3360, 3648};
  for (long kind = 0; kind < 11; kind++) {
    auto [columns, size, halves, own] = kinds[kind];
    std::vector<uint8_t> bytes(n * blocks * size);
    for (uint8_t &each : bytes) each = uint8_t(int64_t(1e6 * chance()));
    for (size_t i = 0; i < bytes.size(); i += size)
      for (long half : halves) bytes[i + half + 1] &= 0xbb; // less than 1
    for (Bits bits : {own, NIBBLES32, BYTES32}) {
      long each = bits < NIBBLES_K ? 32 : 256;
      std::vector<char> packed(2 * blocks * columns / each * sizes[bits - NIBBLES32]), again(packed.size());
      pack(kind, bytes.data(), bits - NIBBLES32, packed.data(), n, blocks * columns, 1);
      pack(kind, bytes.data(), bits - NIBBLES32, again.data(), n, blocks * columns, 2);
      expect(packed == again, [&] { return "packing by two threads " + text(kind, bits); });
      digest_of(packed.data(), packed.size());
    }
  }
}

// The largest by sorting: many are equal, some are NaN, and vectors do not divide all sizes.
template <class T> void check_likeliest(long vocab, long k, long not_numbers) {
  const long rows = 3;
  std::vector<T> logits = numbers<T>(rows * vocab);
  for (long i = 0; i < rows * vocab; i += 3) set(logits[i], std::round(value(logits[i])));
  for (long i = 0; i < not_numbers; i++) set(logits[vocab + (7 * i + vocab / 2) % vocab], std::nan(""));
  std::vector<int64_t> places = {2, 1, 1}, tokens(places.size() * k), truth(vocab);
  if constexpr (sizeof(T) == 2) likeliest_bf16(logits.data(), places.data(), tokens.data(), places.size(), vocab, k);
  else likeliest_f32(logits.data(), places.data(), tokens.data(), places.size(), vocab, k);
  for (size_t row = 0; row < places.size(); row++) {
    const T *own = &logits[places[row] * vocab];
    for (long i = 0; i < vocab; i++) truth[i] = i;
    std::stable_sort(truth.begin(), truth.end(), [&](int64_t a, int64_t b) {
      double left = value(own[a]), right = value(own[b]);
      return left > right || (std::isnan(left) && !std::isnan(right));
    });
    if (std::isnan(value(own[truth[0]]))) truth[0] = -1;
    for (long i = 0; i < k; i++)
      expect(tokens[row * k + i] == truth[i], [&] { return "likeliest " + text(sizeof(T), vocab, k, not_numbers, row, i); });
  }
}

// Trees of `nodes` nodes for each row: where `branchy`, a node continues the one before the last.
struct Trees {
  std::vector<int64_t> lengths, starts;
  std::vector<int32_t> paths, depths;
  long rows, nodes;
  Trees(std::vector<int64_t> lengths, long nodes, bool branchy) : lengths(lengths), rows(lengths.size()), nodes(nodes) {
    for (long row = 0; row < rows; row++) {
      starts.push_back(row * nodes);
      for (long node = 0; node < nodes; node++) {
        std::vector<int32_t> path;
        for (long at = node; at >= 0; at -= branchy && at > 1 ? 2 : 1) path.insert(path.begin(), int32_t(at));
        depths.push_back(int32_t(path.size()));
        path.resize(nodes);
        paths.insert(paths.end(), path.begin(), path.end());
      }
    }
    starts.push_back(rows * nodes);
  }
  const int32_t *path(long row, long node) const { return &paths[(row * nodes + node) * nodes]; }
  long depth(long row, long node) const { return depths[row * nodes + node]; }
};

template <class T> void attend(const Attention &a) { sizeof(T) == 2 ? attention_bf16(&a) : attention_f32(&a); }

// What one head of one node sees, weighted; keys and values are `step` apart.
template <class T>
Numbers attended(const T *query, const T *keys, const T *values, long step, const Trees &trees, long row, long node, long dim,
                 long window, double scale, double softcap) {
  std::vector<long> slots;
  for (long slot = 0; slot < trees.lengths[row]; slot++) slots.push_back(slot);
  for (long i = 0; i < trees.depth(row, node); i++) slots.push_back(trees.lengths[row] + trees.path(row, node)[i]);
  if (window && long(slots.size()) > window) slots.erase(slots.begin(), slots.end() - window);
  Numbers scores, out(dim);
  for (long slot : slots) {
    double score = 0;
    for (long d = 0; d < dim; d++) score += value(query[d]) * value(keys[slot * step + d]);
    scores.push_back(softcap ? softcap * std::tanh(score * scale / softcap) : score * scale);
  }
  double most = *std::max_element(scores.begin(), scores.end()), total = 0;
  for (double &score : scores) total += score = std::exp(score - most);
  for (size_t i = 0; i < slots.size(); i++)
    for (long d = 0; d < dim; d++) out[d] += scores[i] / total * value(values[slots[i] * step + d]);
  return out;
}

template <class T> void check_attention(long dim, int64_t length, long window, float softcap, bool branchy) {
  const long heads = 6, kv = 2, nodes = 7;
  Trees trees({length, length / 2 + 1}, nodes, branchy);
  const long slots = length + nodes, rows = trees.rows, width = heads * dim;
  std::vector<T> q = numbers<T>(rows * nodes * width), k = numbers<T>(rows * kv * slots * dim), v = numbers<T>(k.size());
  const float scale = float(1 / std::sqrt(double(dim)));
  auto run = [&](const Trees &of, const T *q, const T *k, const T *v, bool packed, int threads) {
    std::vector<T> out(of.rows * of.nodes * width);
    attend<T>({q, k, v, out.data(), of.lengths.data(), packed ? of.starts.data() : nullptr, of.paths.data(), of.depths.data(),
               of.rows, heads, kv, of.nodes, dim, of.nodes * width, dim, width, kv * slots * dim, slots * dim, dim,
               kv * slots * dim, slots * dim, dim, window, scale, softcap, threads});
    return out;
  };
  std::vector<T> out = run(trees, q.data(), k.data(), v.data(), false, 2);
  std::string name = "attention " + text(sizeof(T), dim, length, window, softcap, branchy);
  expect(out == run(trees, q.data(), k.data(), v.data(), true, 1), [&] { return "packed, one thread: " + name; });
  for (long row = 0; row < rows; row++)
    for (long node = 0; node < nodes; node++) {
      long at = (row * nodes + node) * width;
      for (long head = 0; head < heads; head++) {
        long shared = (row * kv + head / (heads / kv)) * slots * dim;
        Numbers truth = attended(&q[at + head * dim], &k[shared], &v[shared], dim, trees, row, node, dim, window, scale, softcap);
        for (long d = 0; d < dim; d++) {
          double got = value(out[at + head * dim + d]);
          double allowed = ROUNDING<T> * std::fabs(truth[d]) + (sizeof(T) == 2 ? 1e-5 : 4e-6);
          expect(std::fabs(got - truth[d]) <= allowed, [&] { return name + text(row, node, head, d, got, truth[d]); });
        }
      }
      // The path to the node as a chain, its keys and values one behind another: the bits of plain decoding.
      long depth = trees.depth(row, node);
      Trees chain({trees.lengths[row]}, depth, false);
      std::vector<T> mine, keys(k.begin() + row * kv * slots * dim, k.begin() + (row + 1) * kv * slots * dim);
      std::vector<T> values(v.begin() + row * kv * slots * dim, v.begin() + (row + 1) * kv * slots * dim);
      for (long i = 0; i < depth; i++) {
        long from = trees.path(row, node)[i];
        mine.insert(mine.end(), &q[(row * nodes + from) * width], &q[(row * nodes + from) * width] + width);
        for (long head = 0; head < kv; head++)
          for (auto *cache : {&keys, &values}) {
            T *slot = &(*cache)[(head * slots + trees.lengths[row]) * dim];
            std::memmove(slot + i * dim, slot + from * dim, dim * sizeof(T));
          }
      }
      std::vector<T> alone = run(chain, mine.data(), keys.data(), values.data(), false, 1);
      expect(same(&alone[(depth - 1) * width], &out[at], width), [&] { return "bits of " + name + text(row, node); });
    }
}

template <class T> void layers(Bits bits, const Layer *const *all, const Cache *caches, const Pass &pass, long count) {
  if constexpr (sizeof(T) == 2) (bits == ALL ? layers_bf16 : layers_blocks_bf16)(all, caches, &pass, count);
  else (bits == ALL ? layers_f32 : layers_blocks_f32)(all, caches, &pass, count);
}

// A model's layers, in the kernels' terms and in plain ones.
template <class T> struct Model {
  static constexpr long COUNT = 2;
  Bits bits;
  long hidden, heads, kv, dim, inner, window;
  bool normed;
  std::vector<Weight> weights;
  std::vector<std::vector<T>> biases, norms;
  std::vector<Layer> layers;

  Model(Bits bits, long hidden, long heads, long kv, long dim, long inner, long window, bool normed)
      : bits(bits), hidden(hidden), heads(heads), kv(kv), dim(dim), inner(inner), window(window), normed(normed) {
    const long shapes[7][2] = {{heads * dim, hidden}, {kv * dim, hidden}, {kv * dim, hidden}, {hidden, heads * dim},
                               {inner, hidden},       {inner, hidden},    {hidden, inner}};
    auto kind = [&](long at) { return bits == MIXED ? BLOCKS[at % 6] : bits; };
    for (long i = 0; i < COUNT; i++) {
      for (auto &shape : shapes) {
        weights.push_back(weight<T>(shape[0], shape[1], kind(&shape - shapes), 1 / std::sqrt(double(shape[1]))));
        biases.push_back(numbers<T>(shape[0], 0.1));
      }
      for (long size : {hidden, hidden, dim, dim}) norms.push_back(numbers<T>(size, 0.2, 1));
    }
    for (long i = 0; i < COUNT; i++) {
      auto matrix = [&](long at) {
        const Weight &w = weights[i * 7 + at];
        bool biased = at < 3; // as Qwen2 has them
        return Matrix{w.bytes.data(), biased ? biases[i * 7 + at].data() : nullptr,
                      shapes[at][0], shapes[at][1], kind(at) - NIBBLES32};
      };
      auto norm = [&](long at) { return at < 2 || normed ? norms[i * 4 + at].data() : nullptr; };
      layers.push_back({matrix(0), matrix(1), matrix(2), matrix(3), matrix(4), matrix(5), matrix(6), norm(0), norm(1), norm(2),
                        norm(3), heads, kv, dim, window, 1e-5f, float(1 / std::sqrt(double(dim)))});
    }
  }

  Numbers times(long layer, long at, Numbers x) const {
    if (bits != ALL) x = rounded(x);
    const Weight &w = weights[layer * 7 + at];
    long k = x.size(), n = w.values.size() / k;
    Numbers y(n);
    for (long row = 0; row < n; row++) {
      y[row] = at < 3 ? value(biases[layer * 7 + at][row]) : 0;
      for (long i = 0; i < k; i++) y[row] += x[i] * w.values[row * k + i];
    }
    return y;
  }
  void normalise(long layer, long at, double *x, long count) const {
    double squares = 0;
    for (long i = 0; i < count; i++) squares += x[i] * x[i];
    for (long i = 0; i < count; i++) x[i] *= value(norms[layer * 4 + at][i]) / std::sqrt(squares / count + 1e-5);
  }
  void rotate(double *x, const T *cos, const T *sin) const {
    for (long d = 0; d < dim / 2; d++) {
      double a = x[d], b = x[d + dim / 2];
      x[d] = a * value(cos[d]) - b * value(sin[d]);
      x[d + dim / 2] = b * value(cos[d + dim / 2]) + a * value(sin[d + dim / 2]);
    }
  }
};

template <class T> void check_layers(Bits bits, long hidden, long heads, long kv, long dim, long inner, long window, bool normed) {
  Model<T> model(bits, hidden, heads, kv, dim, inner, window, normed);
  const long nodes = 5, slots = 40, count = model.COUNT;
  Trees trees({23, 4}, nodes, true);
  const long rows = trees.rows, all = rows * nodes, size = rows * kv * slots * dim;
  std::vector<T> x = numbers<T>(all * hidden), cos(all * dim), sin(all * dim);
  for (long at = 0; at < all; at++)
    for (long d = 0; d < dim; d++) {
      double angle = (trees.lengths[at / nodes] + trees.depth(at / nodes, at % nodes)) * std::pow(100.0, -double(d % (dim / 2)) / dim);
      set(cos[at * dim + d], std::cos(angle));
      set(sin[at * dim + d], std::sin(angle));
    }
  std::vector<std::vector<T>> committed;
  for (long i = 0; i < 2 * count; i++) committed.push_back(numbers<T>(size));
  const Layer *pointers[] = {&model.layers[0], &model.layers[1]};

  // Some nodes of a row, or all of all rows; what they leave in the cache stays in `kept`.
  auto run = [&](std::vector<std::vector<T>> &kept, const Trees &of, long row, const T *x, const T *cos, const T *sin, int threads) {
    std::vector<T> y(of.rows * of.nodes * hidden);
    std::vector<Cache> caches;
    for (long i = 0; i < count; i++)
      caches.push_back({&kept[2 * i][row * kv * slots * dim], &kept[2 * i + 1][row * kv * slots * dim], kv * slots * dim, slots * dim, dim});
    layers<T>(bits, pointers, caches.data(),
              {x, cos, sin, y.data(), of.lengths.data(), nullptr, of.paths.data(), of.depths.data(), nullptr, of.rows, of.nodes, threads},
              count);
    return y;
  };
  std::vector<std::vector<T>> kept = committed;
  std::vector<T> out = run(kept, trees, 0, x.data(), cos.data(), sin.data(), 2);
  std::string name = "layers " + text(sizeof(T), bits, hidden, heads, kv, dim, inner, window, normed);

  // Node by node along its path, as plain decoding goes: the same bits.
  for (long row = 0; row < rows; row++)
    for (long node = 0; node < nodes; node++) {
      std::vector<std::vector<T>> own = committed;
      std::vector<T> last;
      for (long i = 0; i < trees.depth(row, node); i++) {
        long at = row * nodes + trees.path(row, node)[i];
        Trees one({trees.lengths[row] + i}, 1, false);
        last = run(own, one, row, &x[at * hidden], &cos[at * dim], &sin[at * dim], 1);
      }
      expect(same(last.data(), &out[(row * nodes + node) * hidden], hidden), [&] { return "bits of " + name + text(row, node); });
    }

  // In double, layer by layer; keys and values in the cache are the kernel's own, which are checked as well.
  std::vector<Numbers> states(all, Numbers(hidden));
  for (long i = 0; i < all * hidden; i++) states[i / hidden][i % hidden] = value(x[i]);
  double worst = 0, largest = 0;
  auto compare = [&](double got, double truth) {
    worst = std::max(worst, std::fabs(got - truth));
    largest = std::max(largest, std::fabs(truth));
  };
  for (long layer = 0; layer < count; layer++) {
    std::vector<Numbers> queries;
    for (long at = 0; at < all; at++) {
      Numbers normed_x = states[at];
      model.normalise(layer, 0, normed_x.data(), hidden);
      Numbers q = model.times(layer, 0, normed_x), k = model.times(layer, 1, normed_x), v = model.times(layer, 2, normed_x);
      for (long head = 0; head < heads; head++) {
        if (normed) model.normalise(layer, 2, &q[head * dim], dim);
        model.rotate(&q[head * dim], &cos[at * dim], &sin[at * dim]);
      }
      for (long head = 0; head < kv; head++) {
        if (normed) model.normalise(layer, 3, &k[head * dim], dim);
        model.rotate(&k[head * dim], &cos[at * dim], &sin[at * dim]);
        long slot = ((at / nodes * kv + head) * slots + trees.lengths[at / nodes] + at % nodes) * dim;
        for (long d = 0; d < dim; d++) {
          compare(value(kept[2 * layer][slot + d]), k[head * dim + d]);
          compare(value(kept[2 * layer + 1][slot + d]), v[head * dim + d]);
        }
      }
      queries.push_back(q);
    }
    for (long at = 0; at < all; at++) {
      Numbers seen;
      for (long head = 0; head < heads; head++) {
        std::vector<T> query(dim);
        for (long d = 0; d < dim; d++) set(query[d], queries[at][head * dim + d]);
        long shared = (at / nodes * kv + head / (heads / kv)) * slots * dim;
        Numbers part = attended(query.data(), &kept[2 * layer][shared], &kept[2 * layer + 1][shared], dim, trees, at / nodes,
                                at % nodes, dim, window, 1 / std::sqrt(double(dim)), 0);
        seen.insert(seen.end(), part.begin(), part.end());
      }
      Numbers attended_to = model.times(layer, 3, seen);
      for (long i = 0; i < hidden; i++) states[at][i] += attended_to[i];
      Numbers normed_x = states[at];
      model.normalise(layer, 1, normed_x.data(), hidden);
      Numbers gate = model.times(layer, 4, normed_x), up = model.times(layer, 5, normed_x);
      for (long i = 0; i < inner; i++) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      Numbers down = model.times(layer, 6, gate);
      for (long i = 0; i < hidden; i++) states[at][i] += down[i];
    }
  }
  for (long i = 0; i < all * hidden; i++) compare(value(out[i]), states[i / hidden][i % hidden]);
  // What rounding to bf16 moves may be rounded to another of 8 bits.
  double off = sizeof(T) == 2 ? (bits == ALL ? 2e-2 : 0.1) : bits == ALL ? 1e-5 : 5e-3;
  expect(worst <= off * largest, [&] { return name + text(worst, largest); });
}

template <class T> void check_all() {
  for (Bits bits : {ALL, NIBBLES32, SIXES32, BYTES32, NIBBLES_K, SIXES_K, SIXES_LEAST_K})
    for (auto [n, k] : {std::pair<long, long>{1, 1}, {5, 7}, {16, 16}, {33, 65}, {131, 577}, {96, 48}, {21, 5000}, {50, 2048}})
      check_linear<T>(bits, n, k);
  for (long dim : {16, 32, 48, 64, 80, 128, 256})
    for (bool branchy : {false, true}) {
      check_attention<T>(dim, 19, 0, 0, branchy);
      check_attention<T>(dim, 150, 9, 20, branchy);
    }
  check_attention<T>(64, 600, 0, 0, true); // so long that heads share a reading of the keys
  for (Bits bits : BLOCKS) {
    check_rows<T>(bits, 5, 577);
    check_rows<T>(bits, 33, 96);
  }
  check_rounding<T>(21, 100);
  check_rounding<T>(16, 256);
  for (Bits bits : {ALL, MIXED, NIBBLES32}) {
    check_layers<T>(bits, 96, 6, 2, 16, 200, 0, false);
    check_layers<T>(bits, 72, 2, 1, 64, 130, 6, true);
  }
  for (long vocab : {5, 64, 333, 4096})
    for (long k : {1, 4, 5, 9})
      for (long not_numbers : {0, 1, 7}) check_likeliest<T>(vocab, std::min(k, vocab), std::min(not_numbers, vocab));
}

} // namespace

int main() {
  check_all<float>();
  check_all<uint16_t>();
  check_packing();
  if (failures) return std::printf("%ld of %ld checks failed at %s\n", failures, checks, specstream_level()), 1;
  std::printf("%s %ld %llx\n", specstream_level(), checks, (unsigned long long)digest);
  return 0;
}
