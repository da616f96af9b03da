// Attention of the few nodes of a token tree over a cache: softmax(q k^T * scale) v, grouped heads, any window.
//
// A node sees its row's committed tokens and its own ancestors. Everything is summed in the order of the positions of
// what it sees, over exactly those keys: what else stands in the cache, at which slots the ancestors lie, and which
// nodes share the pass leave no trace in its bits. A branch of a tree has the bits of plain decoding.

#pragma once

#include "lanes.h"
#include <limits>

extern "C" struct Attention {
  const void *q, *k, *v;     // q [rows, heads, nodes, dim], k and v [rows, kv_heads, slots, dim]; dim contiguous
  void *out;                 // [rows, nodes, heads, dim] contiguous
  const int64_t *lengths;    // [rows] committed tokens, in slots 0, 1, 2, ...
  const int64_t *starts;     // [rows + 1] where q and out have the nodes of all rows one after another, rows of fewer
                             // than `nodes` among them: the first node of each row, and how many they all are; or null
  const int32_t *paths;      // [rows, nodes, nodes]: the nodes from below the root's parent down to each node itself
  const int32_t *depths;     // [rows, nodes]: how many of them
  int64_t rows, heads, kv_heads, nodes, dim;
  int64_t q_row, q_head, q_node; // strides in elements
  int64_t k_row, k_head, k_slot;
  int64_t v_row, v_head, v_slot;
  int64_t window;            // tokens a node sees at most, itself included; 0 for no limit
  float scale, softcap;      // softcap 0 for none
  int64_t threads;
};

namespace {

// Nodes of a row, the place of one of them among all, and the row of a place.
template <class Shape> long nodes_of(const Shape &a, long row) { return a.starts ? a.starts[row + 1] - a.starts[row] : a.nodes; }
template <class Shape> long place_of(const Shape &a, long row, long node) {
  return (a.starts ? a.starts[row] : row * a.nodes) + node;
}
template <class Shape> long row_of(const Shape &a, long place) {
  if (!a.starts) return place / a.nodes;
  long row = 0;
  while (a.starts[row + 1] <= place) row++;
  return row;
}

constexpr long NODES_AT_ONCE = 4;    // nodes of a task
constexpr long SUMS_AT_ONCE = 6;     // that share one reading of values
constexpr long SLOTS_AT_ONCE = 128;  // keys that stay in the first cache while all who share them look at them
constexpr long MUCH_CONTEXT = 512;   // slots from which on reading keys once for several heads is worth an uneven share

// Vectors of a value that are weighted at a time for 1, 2, ... neighbours: as many as have their sums in registers.
#if defined(__AVX2__) && !defined(__AVX512BW__)
constexpr int PARTS_AT_ONCE[SUMS_AT_ONCE] = {8, 4, 4, 2, 2, 2};
#else
constexpr int PARTS_AT_ONCE[SUMS_AT_ONCE] = {4, 4, 4, 4, 4, 4};
#endif

// What one node sees, for one of its heads: the slots `first` to `last` in one piece, committed ones and those of its
// path that lie right behind them; then its path from `step` on.
struct View {
  long first, last, step, depth, count;
  long shared; // up to where its neighbours see the same slots
  const int32_t *path;
  std::vector<float> weights; // one for each key seen, in order, padded to LANES
};

// How vectors of a head's numbers are taken: as they stand, or where EACH is 2 as load_part takes them, two at a time, which
// a head must be a multiple of. What is added up of values is put back.
template <class T, int EACH> struct Head {
  static constexpr long WIDTH = EACH * LANES;
  static Floats part(const T *from, long part) { return EACH == 2 ? load_part(from, part) : load(from + part * LANES); }
  static void put(const Floats (&parts)[EACH], T *to) {
    if constexpr (EACH == 2) store_pairs(parts[0], parts[1], to);
    else store(parts[0], to);
  }
};

// How a query and a key meet: PARTS of each WIDTH numbers. A query meets many keys, so that it is made ready once, as X's.
template <class T, int EACH> struct Meeting : Head<T, EACH> {
  using X = float;
  using Part = Floats;
  static constexpr long PARTS = EACH;
  static void prepare(const T *from, long dim, X *to) {
    for (long d = 0; d < dim; d += Meeting::WIDTH)
      for (long i = 0; i < PARTS; i++) store(Meeting::part(from + d, i), to + d + i * LANES);
  }
  static Part query(const X *from, long part) { return load(from + part * LANES); }
  static Part key(const T *from, long part) { return Meeting::part(from, part); }
  static Floats add(Floats sum, Part query, Part key) { return fused(query, key, sum); }
};

#if defined(__AVX512BF16__)
// The processor multiplies bfloat16 itself; see Product in linear.h.
template <> struct Meeting<uint16_t, 2> : Head<uint16_t, 2> {
  using X = uint16_t;
  using Part = __m512bh;
  static constexpr long PARTS = 1;
  static void prepare(const uint16_t *from, long dim, X *to) { std::memcpy(to, from, dim * sizeof(X)); }
  static Part query(const X *from, long) {
    Part part;
    std::memcpy(&part, from, sizeof part);
    return part;
  }
  static Part key(const uint16_t *from, long part) { return query(from, part); }
  static Floats add(Floats sum, Part query, Part key) { return (Floats)_mm512_dpbf16_ps((__m512)sum, query, key); }
};
#endif

// Some nodes of a row, and some heads that share a head of keys.
template <class T, int EACH> struct Task {
  using H = Head<T, EACH>;
  using M = Meeting<T, EACH>;

  const Attention &a;
  long row, head, heads, node, nodes;
  View *views;            // [heads][nodes]
  float *sums;            // [heads][nodes][dim]
  typename M::X *queries; // likewise

  const T *key(long slot) const { return static_cast<const T *>(a.k) + row * a.k_row + kv() * a.k_head + slot * a.k_slot; }
  const T *value(long slot) const { return static_cast<const T *>(a.v) + row * a.v_row + kv() * a.v_head + slot * a.v_slot; }
  long kv() const { return head / (a.heads / a.kv_heads); }
  long length() const { return a.lengths[row]; }
  long count() const { return heads * nodes; }

  void look() {
    for (long i = 0; i < count(); i++) {
      View &view = views[i];
      long own = node + i % nodes;
      see(view, a.paths + (row * a.nodes + own) * a.nodes, a.depths[row * a.nodes + own]);
      view.weights.assign((view.count + LANES - 1) / LANES * LANES, -std::numeric_limits<float>::infinity());
      long before = a.starts ? a.starts[row] * a.q_node : row * a.q_row;
      const T *query = static_cast<const T *>(a.q) + before + (head + i / nodes) * a.q_head + own * a.q_node;
      M::prepare(query, a.dim, queries + i * a.dim);
    }
    for (long i = 0, many; i < count(); i += many) {
      many = alike(i);
      long shared = views[i].last;
      for (long j = i; j < i + many; j++) shared = views[j].last < shared ? views[j].last : shared;
      for (long j = i; j < i + many; j++) views[j].shared = shared;
    }
  }

  void see(View &view, const int32_t *path, long depth) const {
    long position = length() + depth - 1;
    long begin = a.window > 0 && position - a.window + 1 > 0 ? position - a.window + 1 : 0;
    long skip = begin > length() ? begin - length() : 0, behind = 0;
    while (behind < depth && path[behind] == behind) behind++;
    view.path = path;
    view.depth = depth;
    view.first = begin;
    view.last = skip > behind ? begin : length() + behind;
    view.step = skip > behind ? skip : behind;
    view.count = view.last - view.first + depth - view.step;
  }

  // How many from `i` on see the committed keys from the same one on, of as many as share a reading.
  long alike(long i) const {
    long many = 1;
    while (many < SUMS_AT_ONCE && i + many < count() && views[i + many].first == views[i].first) many++;
    return many;
  }

  // Products of Q queries with N keys, `apart` from each other, lane by lane. All go along together: a key is widened once
  // for all queries, and none waits for its own additions.
  template <int Q, int N>
  __attribute__((always_inline)) static void dots(const typename M::X *x, const T *k, long dim, long apart,
                                                  Floats (&sums)[Q * N]) {
    for (Floats &each : sums) each = Floats{};
    for (long d = 0; d < dim; d += M::WIDTH)
#pragma GCC unroll 2
      for (long part = 0; part < M::PARTS; part++) {
        typename M::Part keys[N];
        for (int n = 0; n < N; n++) keys[n] = M::key(k + n * apart + d, part);
        for (int q = 0; q < Q; q++) {
          typename M::Part query = M::query(x + q * dim + d, part);
          for (int n = 0; n < N; n++) sums[q * N + n] = M::add(sums[q * N + n], query, keys[n]);
        }
      }
  }

  // Scores of the keys from..to for Q neighbours who look at them, from `at` among each one's weights on. DIM is the head's
  // size where that is known, else 0.
  template <int DIM, int Q> void score(long i, long from, long to, long at) const {
    constexpr int N = LANES / Q;
    const long dim = DIM ? DIM : a.dim, apart = a.k_slot, count = to - from;
    const float scale = a.scale;
    const T *k = key(from);
    const typename M::X *x = queries + i * dim;
    float *weights[Q];
    for (int q = 0; q < Q; q++) weights[q] = &views[i + q].weights[at];
    long slot = 0;
    for (; slot + N <= count; slot += N, k += N * apart) {
      Floats lanes[LANES];
      dots<Q, N>(x, k, dim, apart, lanes);
      float scores[LANES];
      store(::sums(lanes) * scale, scores);
      for (int q = 0; q < Q; q++) std::memcpy(weights[q] + slot, scores + q * N, N * sizeof(float));
    }
    for (; slot < count; slot++, k += apart) {
      Floats lanes[Q];
      dots<Q, 1>(x, k, dim, apart, lanes);
      for (int q = 0; q < Q; q++) weights[q][slot] = sum(lanes[q]) * scale;
    }
  }
  template <int DIM> void score_for_all(long many, long i, long from, long to, long at) const {
    long end = i + many;
    for (; i + 4 <= end; i += 4) score<DIM, 4>(i, from, to, at);
    for (; i + 2 <= end; i += 2) score<DIM, 2>(i, from, to, at);
    for (; i < end; i++) score<DIM, 1>(i, from, to, at);
  }

  // The values of slots from..to, weighted, on the sums of those who look at them: G neighbours, for whom each value is
  // read once, P vectors of it at a time. `at` is the place of the first weight among each one's.
  template <int G, int P> void add(long i, long from, long to, long at) {
    for (long d = 0; d < a.dim; d += P * LANES) {
      const T *v = value(from) + d;
      Floats totals[G][P];
      const float *weights[G];
      for (int g = 0; g < G; g++) {
        weights[g] = &views[i + g].weights[at];
        for (int p = 0; p < P; p++) totals[g][p] = load(sums + (i + g) * a.dim + d + p * LANES);
      }
      for (long step = 0; step < to - from; step++, v += a.v_slot) {
        Floats parts[P];
        for (int p = 0; p < P; p++) parts[p] = H::part(v, p);
        for (int g = 0; g < G; g++)
          for (int p = 0; p < P; p++) totals[g][p] = fused(parts[p], all(weights[g][step]), totals[g][p]);
      }
      for (int g = 0; g < G; g++)
        for (int p = 0; p < P; p++) store(totals[g][p], sums + (i + g) * a.dim + d + p * LANES);
    }
  }
  template <int G> void add(long i, long from, long to, long at) {
    constexpr int parts = PARTS_AT_ONCE[G - 1];
    a.dim % (parts * LANES) ? add<G, EACH>(i, from, to, at) : add<G, parts>(i, from, to, at);
  }

  void add_for(long many, long i, long from, long to, long at) {
    switch (many) {
    case 1: return add<1>(i, from, to, at);
    case 2: return add<2>(i, from, to, at);
    case 3: return add<3>(i, from, to, at);
    case 4: return add<4>(i, from, to, at);
    case 5: return add<5>(i, from, to, at);
    default: return add<SUMS_AT_ONCE>(i, from, to, at);
    }
  }

  // What neighbours see in one piece is read once for all, some at a time; then the rest of each one's piece, and its
  // path. `visit` gets how many neighbours from which one on, what they see, and where among all that they see.
  template <class Visit> void each(const Visit &visit) {
    long begin = views[0].first, end = 0;
    for (long i = 0; i < count(); i++) {
      begin = views[i].first < begin ? views[i].first : begin;
      end = views[i].shared > end ? views[i].shared : end;
    }
    for (; begin < end; begin += SLOTS_AT_ONCE)
      for (long i = 0, many; i < count(); i += many) {
        many = alike(i);
        long from = views[i].first > begin ? views[i].first : begin;
        long to = begin + SLOTS_AT_ONCE < views[i].shared ? begin + SLOTS_AT_ONCE : views[i].shared;
        if (from < to) visit(many, i, from, to, from - views[i].first);
      }
    for (long i = 0; i < count(); i++) {
      const View &view = views[i];
      if (view.shared < view.last) visit(1, i, view.shared, view.last, view.shared - view.first);
      for (long step = view.step; step < view.depth; step++) {
        long slot = length() + view.path[step];
        visit(1, i, slot, slot + 1, view.last - view.first + step - view.step);
      }
    }
  }

  float softmax(View &view) {
    Floats most = load(view.weights.data());
    for (long j = LANES; j < view.count; j += LANES) {
      Floats weights = load(&view.weights[j]);
      most = weights > most ? weights : most;
    }
    float highest = most[0];
    for (long lane = 1; lane < LANES; lane++) highest = most[lane] > highest ? most[lane] : highest;
    Floats total = {};
    for (long j = 0; j < view.count; j += LANES) {
      Floats weights = exponential(load(&view.weights[j]) - highest);
      if (view.count - j < LANES)
        for (long lane = view.count - j; lane < LANES; lane++) weights[lane] = 0.0f;
      std::memcpy(&view.weights[j], &weights, sizeof weights);
      total += weights;
    }
    return sum(total);
  }

  void run() {
    look();
    each([&](long many, long i, long from, long to, long at) {
      if (a.dim == 64) score_for_all<64>(many, i, from, to, at);
      else if (a.dim == 128) score_for_all<128>(many, i, from, to, at);
      else score_for_all<0>(many, i, from, to, at);
    });
    for (long i = 0; i < (a.softcap > 0 ? count() : 0); i++)
      for (long j = 0; j < views[i].count; j++) {
        float &score = views[i].weights[j];
        score = a.softcap * std::tanh(score / a.softcap);
      }
    thread_local std::vector<float> totals;
    totals.resize(count());
    for (long i = 0; i < count(); i++) totals[i] = softmax(views[i]);
    std::memset(sums, 0, count() * a.dim * sizeof(float));
    each([&](long many, long i, long from, long to, long at) {
      add_for(many, i, from, to, at);
    });
    for (long i = 0; i < count(); i++) {
      T *out = static_cast<T *>(a.out) + (place_of(a, row, node + i % nodes) * a.heads + head + i / nodes) * a.dim;
      for (long d = 0; d < a.dim; d += H::WIDTH) {
        Floats parts[EACH];
        for (long part = 0; part < EACH; part++) parts[part] = load(sums + i * a.dim + d + part * LANES) / totals[i];
        H::put(parts, out + d);
      }
    }
  }
};

template <class T, int EACH> void attend_by(const Attention &a) {
  long longest = 0;
  for (long row = 0; row < a.rows; row++) longest = a.lengths[row] > longest ? a.lengths[row] : longest;
  long sharing = longest < MUCH_CONTEXT ? 1 : a.heads / a.kv_heads; // heads of a task
  long groups = (a.nodes + NODES_AT_ONCE - 1) / NODES_AT_ONCE, parts = a.heads / sharing;
  thread_local std::vector<View> views;
  thread_local std::vector<float> sums;
  thread_local std::vector<typename Meeting<T, EACH>::X> queries;
  views.resize(sharing * NODES_AT_ONCE);
  sums.resize(sharing * NODES_AT_ONCE * a.dim);
  queries.resize(sharing * NODES_AT_ONCE * a.dim);
#pragma omp for schedule(dynamic)
  for (long task = 0; task < a.rows * parts * groups; task++) {
    long group = task % groups, part = task / groups % parts, row = task / groups / parts;
    long node = group * NODES_AT_ONCE, left = nodes_of(a, row) - node, nodes = left < NODES_AT_ONCE ? left : NODES_AT_ONCE;
    Task<T, EACH> own{a, row, part * sharing, sharing, node, nodes, views.data(), sums.data(), queries.data()};
    if (nodes > 0) own.run();
  }
}

// To be called by every thread of a parallel region; the work is shared among them.
template <class T> void attend(const Attention &a) {
  // At levels whose vectors are short enough every head is a multiple of two of them.
  if (16 % (2 * LANES) == 0 || a.dim % (2 * LANES) == 0) return attend_by<T, 2>(a);
  if constexpr (16 % (2 * LANES)) attend_by<T, 1>(a);
}

} // namespace
