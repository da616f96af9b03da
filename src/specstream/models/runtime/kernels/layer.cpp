// Decoder layers of the Llama kind in one call: RMS norm, grouped attention with rotary positions over the cache, RMS
// norm, gated SiLU. What is written into memory by a layer's modules one after another stays in the caches here.
//
// Everything is rounded where the modules round it, so that in bfloat16 the two differ by orders of summation only.

#include "attention.h"
#include "blocks.h"

extern "C" struct Matrix {
  const void *weights, *bias; // bias or null
  int64_t outputs, inputs, layout; // the last of weights in blocks
};

extern "C" struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const void *input_norm, *post_norm, *q_norm, *k_norm; // the last two or null
  int64_t heads, kv_heads, dim, window;
  float epsilon, scale;
};

extern "C" struct Cache { // of one layer
  void *keys, *values;    // [rows, kv_heads, slots, dim], with the same strides in elements
  int64_t row, head, slot;
};

extern "C" struct Pass {
  const void *x, *cos, *sin; // [rows, nodes, hidden], [rows, nodes, dim] twice; with starts the nodes of all rows in turn
  void *y;                   // like x
  const int64_t *lengths, *starts; // as in Attention, like paths and depths
  const int32_t *paths, *depths;
  void *const *kept; // of each layer, where to leave a copy of what goes into it, or null; null for none at all
  int64_t rows, nodes, threads;
};

namespace {

constexpr long BLOCKS = 8; // parts of a row that threads activate

struct Memory {
  std::vector<char> inputs, q, k, v, seen, between, gate, up, states[2];
};

// RMS norm of `count` values.
template <class T> void normalise(const T *from, const void *weights, long count, float epsilon, T *to) {
  Floats squares = {};
  for (long i = 0; i < count; i += LANES) {
    Floats values = load(from + i, count - i);
    squares = fused(values, values, squares);
  }
  float factor = 1.0f / std::sqrt(sum(squares) / count + epsilon);
  const T *w = static_cast<const T *>(weights);
  for (long i = 0; i < count; i += LANES) {
    long some = count - i;
    store(load(w + i, some) * rounded<T>(load(from + i, some) * factor), to + i, some);
  }
}

// T: activations and cache. W: weights.
template <class T, class W> struct Block {
  using P = Product<W>;
  using X = typename P::X;

  const Layer &layer, *next; // the one above, or null
  const Cache &cache;
  const Pass &pass;
  const T *x;
  T *y;
  long m, hidden, inner;
  X *inputs; // of the next matrix
  T *q, *k, *v, *seen, *between, *gate, *up; // between: the hidden states after attention
  Turns *turns; // one for each matrix

  Block(const Layer &layer, const Layer *next, const Cache &cache, const Pass &pass, const T *x, T *y, Memory &memory,
        Turns *turns)
      : layer(layer), next(next), cache(cache), pass(pass), x(x), y(y), m(place_of(pass, pass.rows, 0)), hidden(layer.q.inputs),
        inner(layer.gate.outputs), turns(turns) {
    long widest = layer.o.inputs > inner ? layer.o.inputs : inner;
    widest = hidden > widest ? hidden : widest;
    inputs = scratch<X>(memory.inputs, m * P::size(widest));
    q = scratch<T>(memory.q, m * layer.q.outputs);
    k = scratch<T>(memory.k, m * layer.k.outputs);
    v = scratch<T>(memory.v, m * layer.v.outputs);
    seen = scratch<T>(memory.seen, m * layer.o.inputs);
    between = scratch<T>(memory.between, m * hidden);
    gate = scratch<T>(memory.gate, m * (inner > hidden ? inner : hidden));
    up = scratch<T>(memory.up, m * inner);
  }

  void prepare(long row, const T *from, long count) const {
    P::prepare(from, count, inputs + row * P::size(count));
  }

  // q and k turned by their position: the halves of a head are the two coordinates.
  void rotate(T *head, long at) const {
    const T *cos = static_cast<const T *>(pass.cos) + at * layer.dim, *sin = static_cast<const T *>(pass.sin) + at * layer.dim;
    long half = layer.dim / 2;
    for (long d = 0; d < half; d += LANES) {
      long some = half - d;
      Floats a = load(head + d, some), b = load(head + d + half, some);
      store(rounded<T>(a * load(cos + d, some)) + rounded<T>(-b * load(sin + d, some)), head + d, some);
      store(rounded<T>(b * load(cos + d + half, some)) + rounded<T>(a * load(sin + d + half, some)), head + d + half, some);
    }
  }

  // f(product) of a matrix, whatever its weights are.
  template <class F> void with(const Matrix &matrix, const F &f) const {
    auto typed = [&](auto *weights) {
      using V = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
      f(Linear<V>(inputs, weights, matrix.outputs, matrix.inputs));
    };
    if constexpr (std::is_same_v<W, AnyBlocks>) in_layout(matrix.layout, matrix.weights, typed);
    else typed(static_cast<const W *>(matrix.weights));
  }

  // This thread's share of a product, on top of a residual if there is one; `next` is the product that follows, or null.
  void project(const Matrix &matrix, const Matrix *next, Turns &turns, T *to, const T *residual = nullptr) const {
    const T *bias = static_cast<const T *>(matrix.bias);
    Output<T> output{bias, residual, to, matrix.outputs};
    Following following;
    if (next) with(*next, [&](const auto &product) { following = Following(product, m, omp_get_num_threads()); });
    with(matrix, [&](const auto &product) { multiply(product, m, turns, output, following); });
  }

  // One head of one node: q stays, k and v go into the cache.
  void place(long row, long node, long head) const {
    long at = place_of(pass, row, node);
    if (head < layer.heads) {
      T *mine = q + (at * layer.heads + head) * layer.dim;
      if (layer.q_norm) normalise(mine, layer.q_norm, layer.dim, layer.epsilon, mine);
      return rotate(mine, at);
    }
    head -= layer.heads;
    T *mine = k + (at * layer.kv_heads + head) * layer.dim;
    if (layer.k_norm) normalise(mine, layer.k_norm, layer.dim, layer.epsilon, mine);
    rotate(mine, at);
    long slot = row * cache.row + head * cache.head + (pass.lengths[row] + node) * cache.slot;
    std::memcpy(static_cast<T *>(cache.keys) + slot, mine, layer.dim * sizeof(T));
    std::memcpy(static_cast<T *>(cache.values) + slot, v + (at * layer.kv_heads + head) * layer.dim, layer.dim * sizeof(T));
  }

  Attention attention() const {
    return Attention{q, cache.keys, cache.values, seen, pass.lengths, pass.starts, pass.paths, pass.depths,
                     pass.rows, layer.heads, layer.kv_heads, pass.nodes, layer.dim,
                     pass.nodes * layer.heads * layer.dim, layer.dim, layer.heads * layer.dim,
                     cache.row, cache.head, cache.slot,
                     cache.row, cache.head, cache.slot,
                     layer.window, layer.scale, 0.0f, pass.threads};
  }

  void activate(long row, long first, long last) const {
    T *g = gate + row * inner, *u = up + row * inner;
    for (long i = first; i < last; i += LANES) {
      long some = last - i;
      Floats values = load(g + i, some);
      values = values / (exponential(-values) + 1.0f);
      store(rounded<T>(values) * load(u + i, some), g + i, some);
    }
  }

  // To be called by every thread of a parallel region.
  void run() const {
#pragma omp for schedule(static)
    for (long row = 0; row < m; row++) {
      normalise(x + row * hidden, layer.input_norm, hidden, layer.epsilon, y + row * hidden);
      prepare(row, y + row * hidden, hidden);
    }
    project(layer.q, &layer.k, turns[0], q);
    project(layer.k, &layer.v, turns[1], k);
    project(layer.v, &layer.o, turns[2], v);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long task = 0; task < m * (layer.heads + layer.kv_heads); task++) {
      long at = task / (layer.heads + layer.kv_heads), row = row_of(pass, at);
      place(row, at - place_of(pass, row, 0), task % (layer.heads + layer.kv_heads));
    }
    attend<T>(attention());
#pragma omp for schedule(static)
    for (long row = 0; row < m; row++) prepare(row, seen + row * layer.o.inputs, layer.o.inputs);
    project(layer.o, &layer.gate, turns[3], between, x);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long row = 0; row < m; row++) {
      T *normed = gate + row * hidden; // free until the next product
      normalise(between + row * hidden, layer.post_norm, hidden, layer.epsilon, normed);
      prepare(row, normed, hidden);
    }
    project(layer.gate, &layer.up, turns[4], gate);
    project(layer.up, &layer.down, turns[5], up);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long task = 0; task < m * BLOCKS; task++) {
      long row = task / BLOCKS, block = task % BLOCKS, each = (inner / BLOCKS + LANES) / LANES * LANES;
      activate(row, block * each, (block + 1) * each < inner ? (block + 1) * each : inner);
    }
#pragma omp for schedule(static)
    for (long row = 0; row < m; row++) prepare(row, gate + row * inner, inner);
    project(layer.down, next ? &next->q : nullptr, turns[6], y, between);
  }
};

template <class T, class W> void run_layers(const Layer *const *layers, const Cache *caches, const Pass &pass, long count) {
  thread_local Memory memory;
  long size = place_of(pass, pass.rows, 0) * layers[0]->q.inputs;
  T *states[2] = {scratch<T>(memory.states[0], size), scratch<T>(memory.states[1], size)};
  const T *x = static_cast<const T *>(pass.x);
  for (long i = 0; i < count; i++) {
    T *y = i + 1 < count ? states[i % 2] : static_cast<T *>(pass.y);
    if (pass.kept && pass.kept[i]) std::memcpy(pass.kept[i], x, size * sizeof(T));
    Turns turns[7];
    Block<T, W> block(*layers[i], i + 1 < count ? layers[i + 1] : nullptr, caches[i], pass, x, y, memory, turns);
#pragma omp parallel num_threads(pass.threads)
    block.run();
    x = y;
  }
}

} // namespace

// The norm behind the layers, of each of m rows of n.
#define NORM(name, T)                                                                                                  \
  extern "C" void norm_##name(const void *x, const void *weights, void *y, long m, long n, float epsilon) {            \
    for (long row = 0; row < m; row++)                                                                                 \
      normalise<T>(static_cast<const T *>(x) + row * n, weights, n, epsilon, static_cast<T *>(y) + row * n);           \
  }
NORM(bf16, uint16_t)
NORM(f32, float)

// Layers one after another, the output of each the input of the next.
#define LAYERS(name, T, W)                                                                                             \
  extern "C" void layers_##name(const Layer *const *layers, const Cache *caches, const Pass *pass, long count) {      \
    run_layers<T, W>(layers, caches, *pass, count);                                                                    \
  }
LAYERS(bf16, uint16_t, uint16_t)
LAYERS(f32, float, float)
LAYERS(blocks_bf16, uint16_t, AnyBlocks)
LAYERS(blocks_f32, float, AnyBlocks)
