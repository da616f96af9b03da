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

constexpr long NODES_AT_ONCE = 4; // nodes that share one reading of the keys

// What one node sees: the committed slots from `first` on, then its path from `skip` on.
struct View {
  long first, skip, depth, count;
  const int32_t *path;
  std::vector<float> weights; // one for each key seen, in order, padded to LANES
};

template <class T> struct Task {
  const Attention &a;
  long row, head, node, nodes;
  View *views;
  float *queries, *sums; // [nodes][dim]

  const T *key(long slot) const { return static_cast<const T *>(a.k) + row * a.k_row + kv() * a.k_head + slot * a.k_slot; }
  const T *value(long slot) const { return static_cast<const T *>(a.v) + row * a.v_row + kv() * a.v_head + slot * a.v_slot; }
  long kv() const { return head / (a.heads / a.kv_heads); }
  long length() const { return a.lengths[row]; }

  void look() {
    for (long i = 0; i < nodes; i++) {
      View &view = views[i];
      long index = row * a.nodes + node + i;
      view.path = a.paths + index * a.nodes;
      view.depth = a.depths[index];
      long position = length() + view.depth - 1;
      long begin = a.window > 0 && position - a.window + 1 > 0 ? position - a.window + 1 : 0;
      view.first = begin < length() ? begin : length();
      view.skip = begin - view.first;
      view.count = length() - view.first + view.depth - view.skip;
      view.weights.assign((view.count + LANES - 1) / LANES * LANES, -std::numeric_limits<float>::infinity());
      const T *q = static_cast<const T *>(a.q) + row * a.q_row + head * a.q_head + (node + i) * a.q_node;
      for (long d = 0; d < a.dim; d++) queries[i * a.dim + d] = widen(q[d]);
    }
  }

  float dot(const T *k, long i) const {
    Floats total = {};
    for (long d = 0; d < a.dim; d += LANES) total += load(queries + i * a.dim + d) * load(k + d);
    float score = sum(total) * a.scale;
    return a.softcap > 0 ? a.softcap * std::tanh(score / a.softcap) : score;
  }

  void add(const T *v, long i, float weight) {
    float *out = sums + i * a.dim;
    for (long d = 0; d < a.dim; d += LANES) {
      Floats total = load(out + d) + load(v + d) * weight;
      std::memcpy(out + d, &total, sizeof total);
    }
  }

  // The committed keys are read once for all nodes; each node's own path is read by itself.
  template <class Visit> void each(const Visit &visit) {
    long from = length();
    for (long i = 0; i < nodes; i++) from = views[i].first < from ? views[i].first : from;
    for (long slot = from; slot < length(); slot++)
      for (long i = 0; i < nodes; i++)
        if (slot >= views[i].first) visit(i, slot, slot - views[i].first);
    for (long i = 0; i < nodes; i++)
      for (long step = views[i].skip; step < views[i].depth; step++)
        visit(i, length() + views[i].path[step], length() - views[i].first + step - views[i].skip);
  }

  float softmax(View &view) {
    float highest = -std::numeric_limits<float>::infinity();
    for (long j = 0; j < view.count; j++) highest = view.weights[j] > highest ? view.weights[j] : highest;
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
    each([&](long i, long slot, long at) { views[i].weights[at] = dot(key(slot), i); });
    float totals[NODES_AT_ONCE];
    for (long i = 0; i < nodes; i++) totals[i] = softmax(views[i]);
    std::memset(sums, 0, nodes * a.dim * sizeof(float));
    each([&](long i, long slot, long at) { add(value(slot), i, views[i].weights[at]); });
    for (long i = 0; i < nodes; i++) {
      T *out = static_cast<T *>(a.out) + ((row * a.nodes + node + i) * a.heads + head) * a.dim;
      for (long d = 0; d < a.dim; d++) narrow(sums[i * a.dim + d] / totals[i], out + d);
    }
  }
};

// To be called by every thread of a parallel region; the work is shared among them.
template <class T> void attend(const Attention &a) {
  long groups = (a.nodes + NODES_AT_ONCE - 1) / NODES_AT_ONCE;
  thread_local View views[NODES_AT_ONCE];
  thread_local std::vector<float> queries, sums;
  queries.resize(NODES_AT_ONCE * a.dim);
  sums.resize(NODES_AT_ONCE * a.dim);
#pragma omp for schedule(static)
  for (long task = 0; task < a.rows * a.heads * groups; task++) {
    long group = task % groups, head = task / groups % a.heads, row = task / groups / a.heads;
    long node = group * NODES_AT_ONCE, nodes = a.nodes - node < NODES_AT_ONCE ? a.nodes - node : NODES_AT_ONCE;
    Task<T>{a, row, head, node, nodes, views, queries.data(), sums.data()}.run();
  }
}

} // namespace
