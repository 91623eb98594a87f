// The time loops of memory_cells.py, whose `_read` and `_trace` state what these compute, and of gated_recurrence.py.
// Registered as torch.ops.seqserve.read, .trace, .linear_read and .linear_trace; for CPU tensors that are contiguous.
//
// A step has one pointwise pass. In float32 and float64 its product is taken here as well, by the thread that goes on with
// the result, so that the threads meet once a step: a product of few rows and a weight that stays the same for many steps
// is where packing once pays. In the 16-bit types the product is at::mm's.

#include <algorithm>
#include <array>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using at::vec::Vectorized;

void widen(const at::BFloat16* from, Vectorized<float>& to) {
  at::vec::load_fp32_from_bf16(from, to);
}

void widen(const at::Half* from, Vectorized<float>& to) {
  at::vec::load_fp32_from_fp16(from, to);
}

template <typename Narrow>
Vectorized<Narrow> narrow(const Vectorized<float>& value) {
  if constexpr (std::is_same_v<Narrow, at::BFloat16>) {
    return at::vec::convert_float_bfloat16(value, value);
  } else {
    return at::vec::convert_float_half(value, value);
  }
}

template <typename Wide, typename Narrow>
Vectorized<Wide> load(const Narrow* from, int64_t count) {
  if constexpr (std::is_same_v<Wide, Narrow>) {
    return Vectorized<Wide>::loadu(from, count);
  } else if (count == Vectorized<Wide>::size()) {
    Vectorized<Wide> value;
    widen(from, value);
    return value;
  } else {
    std::array<Wide, Vectorized<Wide>::size()> lanes{};
    std::copy_n(from, count, lanes.begin());
    return Vectorized<Wide>::loadu(lanes.data());
  }
}

template <typename Wide, typename Narrow>
void store(Narrow* to, const Vectorized<Wide>& value, int64_t count) {
  if constexpr (std::is_same_v<Wide, Narrow>) {
    value.store(to, count);
  } else {
    constexpr int64_t all = Vectorized<Wide>::size();
    std::array<Narrow, Vectorized<Narrow>::size()> lanes;
    narrow<Narrow>(value).store(lanes.data());
    if (count == all) {
      std::copy_n(lanes.begin(), all, to);  // of a length known here, so one move
    } else {
      std::copy_n(lanes.begin(), count, to);
    }
  }
}

template <typename Wide>
Vectorized<Wide> sigmoid(const Vectorized<Wide>& x) {
  const Vectorized<Wide> one(1);
  return one / (one + x.neg().exp());
}

// A matrix in vectors of columns, each stored row by row, those past the end as zeros.
template <typename Wide>
struct Packed {
  static constexpr int64_t lanes = Vectorized<Wide>::size();
  int64_t depth;
  std::vector<Wide> numbers;

  Packed(int64_t vectors, int64_t depth) : depth(depth), numbers(vectors * depth * lanes) {}

  // Vector `which` becomes `count` columns: column j is from[j * column_stride], from[j * column_stride + row_stride], ...
  void fill(int64_t which, const Wide* from, int64_t count, int64_t column_stride, int64_t row_stride) {
    Wide* to = numbers.data() + which * depth * lanes;
    for (int64_t column = 0; column < count; ++column) {
      for (int64_t row = 0; row < depth; ++row) {
        to[row * lanes + column] = from[column * column_stride + row * row_stride];
      }
    }
  }

  const Wide* vector(int64_t which) const {
    return numbers.data() + which * depth * lanes;
  }
};

constexpr int64_t most_columns = 4;                                    // vectors of a tile
constexpr int64_t most_rows = Vectorized<float>::size() == 16 ? 5 : 3;  // so that a tile's sums stay in registers

// sums (rows, columns) = rows (rows, depth) times `columns` packed vectors.
template <typename Wide, int64_t rows, int64_t columns>
void multiply(const Wide* from, int64_t stride, const Wide* packed, int64_t depth, Vectorized<Wide>* sums) {
  constexpr int64_t lanes = Vectorized<Wide>::size();
  std::array<std::array<Vectorized<Wide>, columns>, rows> totals;
  for (auto& total : totals) {
    total.fill(Vectorized<Wide>(0));
  }
  for (int64_t k = 0; k < depth; ++k) {
    std::array<Vectorized<Wide>, columns> weight;
#pragma GCC unroll 8
    for (int64_t column = 0; column < columns; ++column) {
      weight[column] = Vectorized<Wide>::loadu(packed + (column * depth + k) * lanes);
    }
#pragma GCC unroll 8
    for (int64_t row = 0; row < rows; ++row) {
      const Vectorized<Wide> x(from[row * stride + k]);
#pragma GCC unroll 8
      for (int64_t column = 0; column < columns; ++column) {
        totals[row][column] = at::vec::fmadd(x, weight[column], totals[row][column]);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(totals[row].begin(), columns, sums + row * columns);
  }
}

template <typename Wide>
using Multiply = void (*)(const Wide*, int64_t, const Wide*, int64_t, Vectorized<Wide>*);

template <typename Wide, size_t... tile>
constexpr auto every_multiply(std::index_sequence<tile...>) {
  return std::array<Multiply<Wide>, sizeof...(tile)>{
      multiply<Wide, tile / most_columns + 1, tile % most_columns + 1>...};
}

// Calls visit(row, sums of that row, `columns` vectors) for every row of rows (N, depth) times the vectors from `first` on.
template <typename Wide, typename Visit>
void for_each_product(const Wide* rows, int64_t count, const Packed<Wide>& weight, int64_t first, int64_t columns,
                      const Visit& visit) {
  static constexpr auto tiles = every_multiply<Wide>(std::make_index_sequence<most_rows * most_columns>());
  std::array<Vectorized<Wide>, most_rows * most_columns> sums;
  for (int64_t row = 0; row < count; row += most_rows) {
    const int64_t height = std::min(most_rows, count - row);
    tiles[(height - 1) * most_columns + columns - 1](rows + row * weight.depth, weight.depth, weight.vector(first),
                                                     weight.depth, sums.data());
    for (int64_t offset = 0; offset < height; ++offset) {
      visit(row + offset, sums.data() + offset * columns);
    }
  }
}

// Calls visit(begin, end) for parts of the vectors in a row of `size` numbers, a part a thread.
template <typename Wide, typename Visit>
void for_each_part(int64_t rows, int64_t size, int64_t worth_a_thread, const Visit& visit) {
  constexpr int64_t lanes = Vectorized<Wide>::size();
  at::parallel_for(0, (size + lanes - 1) / lanes, worth_a_thread / std::max<int64_t>(rows, 1) + 1, visit);
}

constexpr int64_t pointwise_worth_a_thread = 512;  // vectors
constexpr int64_t product_worth_a_thread = 32;

template <typename Narrow, typename Wide, bool coupled>
struct Advance {
  static constexpr int64_t gates = coupled ? 3 : 4;
  int64_t size;
  const Wide* peephole;
  const Wide* before;
  Wide* values;
  Wide* after;
  Narrow* outputs;

  // One vector of one row, given the recurrent product of its gates; `values` has the rest of what is added up for them.
  void operator()(int64_t row, int64_t column, int64_t count, const Vectorized<Wide>* recurrent) const {
    const auto place = [=, this](int64_t gate) { return (row * gates + gate) * size + column; };
    const auto sum = [=, this](int64_t gate) { return load<Wide>(values + place(gate), count) + recurrent[gate]; };
    const auto weight = [=, this](int64_t which) { return load<Wide>(peephole + which * size + column, count); };
    const int64_t here = row * size + column;
    const auto c = load<Wide>(before + here, count);
    const auto i = sigmoid(sum(0) + weight(0) * c);
    auto forget = Vectorized<Wide>(1) - i;
    if constexpr (!coupled) {
      forget = sigmoid(sum(1) + weight(1) * c);
      store(values + place(1), forget, count);
    }
    const auto g = sum(gates - 2).tanh();
    const auto c_after = forget * c + i * g;
    const auto o = sigmoid(sum(gates - 1) + weight(gates - 2) * c_after);
    store(values + place(0), i, count);
    store(values + place(gates - 2), g, count);
    store(values + place(gates - 1), o, count);
    store(after + here, c_after, count);
    store(outputs + here, o * c_after.tanh(), count);
  }
};

template <typename Narrow, typename Wide, bool coupled>
struct Retreat {
  static constexpr int64_t gates = coupled ? 3 : 4;
  int64_t size;
  const Wide* values;
  const Wide* peephole;
  const Wide* before;
  const Wide* after;
  const Narrow* d_outputs;
  const Narrow* d_h;
  Wide* d_c;
  Narrow* d_gates;
  Wide* d_bias;
  Wide* d_peephole;

  // One vector of one row.
  void operator()(int64_t row, int64_t column, int64_t count) const {
    using Vector = Vectorized<Wide>;
    const Vector one(1);
    const auto place = [=, this](int64_t gate) { return (row * gates + gate) * size + column; };
    const auto value = [=, this](int64_t gate) { return load<Wide>(values + place(gate), count); };
    const auto weight = [=, this](int64_t which) { return load<Wide>(peephole + which * size + column, count); };
    const auto add = [=, this](Wide* sums, int64_t which, const Vector& term) {
      Wide* sum = sums + which * size + column;
      store(sum, load<Wide>(sum, count) + term, count);
    };
    const auto keep = [=, this](int64_t gate, const Vector& gradient) {
      store(d_gates + place(gate), gradient, count);
      add(d_bias, gate, gradient);
    };
    const int64_t here = row * size + column;
    const auto c = load<Wide>(before + here, count), c_after = load<Wide>(after + here, count);
    const auto i = value(0), g = value(gates - 2), o = value(gates - 1);
    const auto gradient = load<Wide>(d_outputs + here, count) + load<Wide>(d_h + here, count);
    const auto seen = c_after.tanh();
    const auto d_o = gradient * seen * o * (one - o);
    const auto d_memory =
        load<Wide>(d_c + here, count) + gradient * o * (one - seen * seen) + d_o * weight(gates - 2);
    const auto d_i = d_memory * (coupled ? g - c : g) * i * (one - i);
    auto d_before = d_i * weight(0);
    if constexpr (coupled) {
      d_before = d_before + d_memory * (one - i);
    } else {
      const auto forget = value(1);
      const auto d_f = d_memory * c * forget * (one - forget);
      d_before = d_before + d_memory * forget + d_f * weight(1);
      keep(1, d_f);
      add(d_peephole, 1, d_f * c);
    }
    keep(0, d_i);
    keep(gates - 2, d_memory * i * (one - g * g));
    keep(gates - 1, d_o);
    add(d_peephole, 0, d_i * c);
    add(d_peephole, gates - 2, d_o * c_after);
    store(d_c + here, d_before, count);
  }

  // The vectors from `begin` to `end` of all rows.
  void all(int64_t rows, int64_t begin, int64_t end) const {
    constexpr int64_t lanes = Vectorized<Wide>::size();
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = begin * lanes; column < std::min(end * lanes, size); column += lanes) {
        (*this)(row, column, std::min(lanes, size - column));
      }
    }
  }
};

// W_hh (G*H, H) for h W_hh^T: the gates of the same units side by side.
template <typename Wide>
Packed<Wide> packed_by_unit(const Tensor& weight, int64_t gates) {
  constexpr int64_t lanes = Vectorized<Wide>::size();
  const int64_t size = weight.size(1), parts = (size + lanes - 1) / lanes;
  const Wide* from = weight.const_data_ptr<Wide>();
  Packed<Wide> packed(parts * gates, size);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t gate = 0; gate < gates; ++gate) {
        const int64_t first = gate * size + part * lanes;
        packed.fill(part * gates + gate, from + first * size, std::min(lanes, size - part * lanes), size, 1);
      }
    }
  });
  return packed;
}

// W_hh (G*H, H) for d_gates W_hh.
template <typename Wide>
Packed<Wide> packed_by_column(const Tensor& weight) {
  constexpr int64_t lanes = Vectorized<Wide>::size();
  const int64_t size = weight.size(1), parts = (size + lanes - 1) / lanes;
  const Wide* from = weight.const_data_ptr<Wide>();
  Packed<Wide> packed(parts, weight.size(0));
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      packed.fill(part, from + part * lanes, std::min(lanes, size - part * lanes), 1, size);
    }
  });
  return packed;
}

template <typename Narrow, bool coupled>
void read_as(const Tensor& values, const Tensor& weight_hh, const Tensor& peephole, const Tensor& h, const Tensor& c,
             const Tensor& outputs, const Tensor& memory, at::IntArrayRef sizes) {
  using Wide = at::opmath_type<Narrow>;
  constexpr int64_t lanes = Vectorized<Wide>::size(), gates = coupled ? 3 : 4;
  constexpr bool multiplies = std::is_same_v<Narrow, Wide>;
  const int64_t size = c.size(1);
  const auto packed = [&] {
    if constexpr (multiplies) return packed_by_unit<Wide>(weight_hh, gates);
    else return weight_hh.t();
  }();
  Advance<Narrow, Wide, coupled> advance{
      size, peephole.const_data_ptr<Wide>(), c.const_data_ptr<Wide>(), values.mutable_data_ptr<Wide>(),
      memory.mutable_data_ptr<Wide>(), outputs.mutable_data_ptr<Narrow>()};
  Tensor seen = h;
  int64_t start = 0;
  for (const int64_t rows : sizes) {
    if constexpr (multiplies) {
      const Narrow* from = seen.const_data_ptr<Narrow>();
      for_each_part<Wide>(rows, size, product_worth_a_thread, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          for_each_product(from, rows, packed, part * gates, gates, [&](int64_t row, const Vectorized<Wide>* sums) {
            advance(row, part * lanes, std::min(lanes, size - part * lanes), sums);
          });
        }
      });
    } else {
      const Tensor product = at::mm(seen.narrow(0, 0, rows), packed);
      const Narrow* sums = product.const_data_ptr<Narrow>();
      for_each_part<Wide>(rows, size, pointwise_worth_a_thread, [&](int64_t begin, int64_t end) {
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t column = begin * lanes; column < std::min(end * lanes, size); column += lanes) {
            const int64_t count = std::min(lanes, size - column);
            std::array<Vectorized<Wide>, gates> recurrent;
            for (int64_t gate = 0; gate < gates; ++gate) {
              recurrent[gate] = load<Wide>(sums + (row * gates + gate) * size + column, count);
            }
            advance(row, column, count, recurrent.data());
          }
        }
      });
    }
    seen = outputs.narrow(0, start, rows);
    start += rows;
    advance.before = advance.after;
    advance.after += rows * size;
    advance.outputs += rows * size;
    advance.values += rows * size * gates;
  }
}

template <typename Narrow, bool coupled>
void trace_as(const Tensor& values, const Tensor& weight_hh, const Tensor& peephole, const Tensor& before,
              const Tensor& memory, const Tensor& d_outputs, const Tensor& d_h, const Tensor& d_c,
              const Tensor& d_gates, const Tensor& d_bias, const Tensor& d_peephole, at::IntArrayRef sizes) {
  using Wide = at::opmath_type<Narrow>;
  constexpr int64_t lanes = Vectorized<Wide>::size(), gates = coupled ? 3 : 4;
  constexpr bool multiplies = std::is_same_v<Narrow, Wide>;
  const int64_t size = memory.size(1);
  const auto packed = [&] {
    if constexpr (multiplies) return packed_by_column<Wide>(weight_hh);
    else return weight_hh;
  }();
  int64_t start = values.size(0), rows_after = 0;  // of the step after, whose gradient has yet to pass to d_h
  const auto pass = [&](int64_t begin, int64_t end) {
    if constexpr (multiplies) {
      Narrow* to = d_h.mutable_data_ptr<Narrow>();
      const Narrow* from = d_gates.const_data_ptr<Narrow>() + start * size * gates;
      for (int64_t part = begin; part < end; part += most_columns) {
        const int64_t columns = std::min(most_columns, end - part);
        for_each_product(from, rows_after, packed, part, columns, [&](int64_t row, const Vectorized<Wide>* sums) {
          for (int64_t which = 0; which < columns; ++which) {
            const int64_t column = (part + which) * lanes;
            store(to + row * size + column, sums[which], std::min(lanes, size - column));
          }
        });
      }
    }
  };
  const auto pass_all = [&] {
    if constexpr (multiplies) {
      for_each_part<Wide>(rows_after, size, product_worth_a_thread, pass);
    } else if (rows_after > 0) {
      d_h.narrow(0, 0, rows_after).copy_(at::mm(d_gates.narrow(0, start, rows_after), packed));
    }
  };
  for (auto rows = sizes.rbegin(); rows != sizes.rend(); ++rows) {
    if constexpr (!multiplies) {
      pass_all();
    }
    const int64_t first = start - *rows;
    const Retreat<Narrow, Wide, coupled> retreat{
        size,
        values.const_data_ptr<Wide>() + first * size * gates,
        peephole.const_data_ptr<Wide>(),
        before.const_data_ptr<Wide>() + first * size,
        memory.const_data_ptr<Wide>() + first * size,
        d_outputs.const_data_ptr<Narrow>() + first * size,
        d_h.const_data_ptr<Narrow>(),
        d_c.mutable_data_ptr<Wide>(),
        d_gates.mutable_data_ptr<Narrow>() + first * size * gates,
        d_bias.mutable_data_ptr<Wide>(),
        d_peephole.mutable_data_ptr<Wide>()};
    const int64_t worth = multiplies ? product_worth_a_thread : pointwise_worth_a_thread;
    for_each_part<Wide>(*rows, size, worth, [&](int64_t begin, int64_t end) {
      pass(begin, end);
      retreat.all(*rows, begin, end);
    });
    start = first;
    rows_after = *rows;
  }
  pass_all();
}

std::tuple<Tensor, Tensor> read_steps(const Tensor& values, const Tensor& weight_hh, const Tensor& peephole,
                                      const Tensor& h, const Tensor& c, at::IntArrayRef sizes) {
  const Tensor outputs = at::empty({values.size(0), c.size(1)}, h.options());
  const Tensor memory = at::empty({values.size(0), c.size(1)}, c.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, h.scalar_type(), "seqserve::read", [&] {
    const auto read = values.size(1) == 3 * c.size(1) ? read_as<scalar_t, true> : read_as<scalar_t, false>;
    read(values, weight_hh, peephole, h, c, outputs, memory, sizes);
  });
  return {outputs, memory};
}

std::tuple<Tensor, Tensor, Tensor> trace_steps(const Tensor& values, const Tensor& weight_hh, const Tensor& peephole,
                                               const Tensor& before, const Tensor& memory, const Tensor& d_outputs,
                                               const Tensor& d_h, const Tensor& d_c, at::IntArrayRef sizes) {
  const Tensor d_gates = at::empty(values.sizes(), d_h.options());
  const Tensor d_bias = at::zeros({values.size(1)}, memory.options());
  const Tensor d_peephole = at::zeros(peephole.sizes(), memory.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, d_h.scalar_type(), "seqserve::trace", [&] {
    const auto trace = values.size(1) == 3 * memory.size(1) ? trace_as<scalar_t, true> : trace_as<scalar_t, false>;
    trace(values, weight_hh, peephole, before, memory, d_outputs, d_h, d_c, d_gates, d_bias, d_peephole, sizes);
  });
  return {d_gates, d_bias, d_peephole};
}

// The time loops of gated_recurrence.py: a thread takes some of the batch through all steps, so threads meet once.

constexpr int64_t linear_worth_a_thread = 1 << 15;  // numbers

// z and c may be parts of a wider tensor (T, B, 3H); only the last stride is 1.
struct Rows {
  int64_t step;
  int64_t row;
  explicit Rows(const Tensor& tensor) : step(tensor.stride(0)), row(tensor.stride(1)) {
    TORCH_CHECK(tensor.stride(2) == 1, "expected a last stride of 1");
  }
};

template <typename Narrow>
void linear_read_as(const Tensor& z, const Tensor& c, const Tensor& h, const Tensor& keep, const Tensor& outputs) {
  using Wide = at::opmath_type<Narrow>;
  constexpr int64_t lanes = Vectorized<Wide>::size();
  const int64_t steps = z.size(0), batch = z.size(1), size = z.size(2);
  const Rows z_rows(z), c_rows(c);
  const Narrow* z_data = z.const_data_ptr<Narrow>();
  const Narrow* c_data = c.const_data_ptr<Narrow>();
  const Wide* h_data = h.const_data_ptr<Wide>();
  const Wide* keep_data = keep.const_data_ptr<Wide>();
  Wide* out = outputs.mutable_data_ptr<Wide>();
  at::parallel_for(0, batch, 1 + linear_worth_a_thread / (steps * size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Wide* before = h_data + b * size;
      for (int64_t t = 0; t < steps; ++t) {
        const Vectorized<Wide> kept(keep_data[t * batch + b]);
        const Narrow* z_row = z_data + t * z_rows.step + b * z_rows.row;
        const Narrow* c_row = c_data + t * c_rows.step + b * c_rows.row;
        Wide* to = out + (t * batch + b) * size;
        for (int64_t at = 0; at < size; at += lanes) {
          const int64_t count = std::min(lanes, size - at);
          const auto update = sigmoid(load<Wide>(z_row + at, count));
          const auto past = load<Wide>(before + at, count) * kept;
          store(to + at, at::vec::fmadd(update, load<Wide>(c_row + at, count) - past, past), count);
        }
        before = to;
      }
    }
  });
}

template <typename Narrow>
void linear_trace_as(const Tensor& z, const Tensor& c, const Tensor& h, const Tensor& keep, const Tensor& outputs,
                     const Tensor& d_outputs, const Tensor& d_z, const Tensor& d_c, const Tensor& d_h) {
  using Wide = at::opmath_type<Narrow>;
  constexpr int64_t lanes = Vectorized<Wide>::size();
  const int64_t steps = z.size(0), batch = z.size(1), size = z.size(2);
  const Rows z_rows(z), c_rows(c);
  const Narrow* z_data = z.const_data_ptr<Narrow>();
  const Narrow* c_data = c.const_data_ptr<Narrow>();
  const Wide* h_data = h.const_data_ptr<Wide>();
  const Wide* keep_data = keep.const_data_ptr<Wide>();
  const Wide* out = outputs.const_data_ptr<Wide>();
  const Wide* d_out = d_outputs.const_data_ptr<Wide>();
  Narrow* d_z_data = d_z.mutable_data_ptr<Narrow>();
  Narrow* d_c_data = d_c.mutable_data_ptr<Narrow>();
  Wide* d_h_data = d_h.mutable_data_ptr<Wide>();  // zeros
  const Vectorized<Wide> one(1);
  at::parallel_for(0, batch, 1 + linear_worth_a_thread / (steps * size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Wide* later = d_h_data + b * size;  // the gradient that the next step passes back
      for (int64_t t = steps - 1; t >= 0; --t) {
        const Vectorized<Wide> kept(keep_data[t * batch + b]);
        const Wide* before = t > 0 ? out + ((t - 1) * batch + b) * size : h_data + b * size;
        const Narrow* z_row = z_data + t * z_rows.step + b * z_rows.row;
        const Narrow* c_row = c_data + t * c_rows.step + b * c_rows.row;
        const int64_t row = (t * batch + b) * size;
        for (int64_t at = 0; at < size; at += lanes) {
          const int64_t count = std::min(lanes, size - at);
          const auto update = sigmoid(load<Wide>(z_row + at, count));
          const auto decay = one - update;
          const auto past = load<Wide>(before + at, count) * kept;
          const auto total = load<Wide>(d_out + row + at, count) + load<Wide>(later + at, count);
          const auto to_c = total * update;
          store(d_c_data + row + at, to_c, count);
          store(d_z_data + row + at, to_c * decay * (load<Wide>(c_row + at, count) - past), count);
          store(later + at, total * decay * kept, count);
        }
      }
    }
  });
}

Tensor linear_read(const Tensor& z, const Tensor& c, const Tensor& h, const Tensor& keep) {
  const Tensor outputs = at::empty(z.sizes(), h.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "seqserve::linear_read",
                                  [&] { linear_read_as<scalar_t>(z, c, h, keep, outputs); });
  return outputs;
}

std::tuple<Tensor, Tensor, Tensor> linear_trace(const Tensor& z, const Tensor& c, const Tensor& h, const Tensor& keep,
                                                const Tensor& outputs, const Tensor& d_outputs) {
  const Tensor d_z = at::empty(z.sizes(), z.options());
  const Tensor d_c = at::empty(z.sizes(), z.options());
  const Tensor d_h = at::zeros(h.sizes(), h.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "seqserve::linear_trace",
                                  [&] { linear_trace_as<scalar_t>(z, c, h, keep, outputs, d_outputs, d_z, d_c, d_h); });
  return {d_z, d_c, d_h};
}

}  // namespace

TORCH_LIBRARY(seqserve, library) {
  library.def(
      "read(Tensor(a!) values, Tensor weight_hh, Tensor peephole, Tensor h, Tensor c, int[] sizes) -> (Tensor, Tensor)");
  library.def(
      "trace(Tensor values, Tensor weight_hh, Tensor peephole, Tensor before, Tensor memory, Tensor d_outputs,"
      " Tensor(a!) d_h, Tensor(b!) d_c, int[] sizes) -> (Tensor, Tensor, Tensor)");
  library.def("linear_read(Tensor z, Tensor c, Tensor h, Tensor keep) -> Tensor");
  library.def(
      "linear_trace(Tensor z, Tensor c, Tensor h, Tensor keep, Tensor outputs, Tensor d_outputs)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(seqserve, CPU, library) {
  library.impl("read", &read_steps);
  library.impl("trace", &trace_steps);
  library.impl("linear_read", &linear_read);
  library.impl("linear_trace", &linear_trace);
}
