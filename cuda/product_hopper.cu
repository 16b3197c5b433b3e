// Launches of the products on sm_90a (cuda/product_hopper.cuh), in place of all launches of cuda/product.cu for a 16-bit type:
// the choice is made once for a backend, so that no element's bits can depend on which of the two summed it. The number of
// rows and of tiles chooses among three shapes of tiles, which changes no bits.
#include "cuda/product_hopper.cuh"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <variant>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

using Few = TensorShape<64, 32, 16>;      // decode and short prompts: deep copies of few weight rows
using Middle = TensorShape<128, 128, 6>;  // where wide tiles would be too few; weight gradients
using Wide = TensorShape<128, 256, 4>;    // prefill and training

__global__ void ask_for_wgmma(int* answer) { *answer = kHasWgmma; }

// The table of a launch, as bytes to stage: maps, counters, products, terms.
class TableBuilder {
 public:
  TableBuilder(Form form, DType type, TensorMaps& maps) : form_(form), type_(type), known_(maps) {}

  template <typename Shape>
  void add(const Product& product) {
    const int64_t tiles = tiles_of<Shape>(product);
    if (tiles == 0) return;
    ProductRecord record = record_of<Shape>(product, type_);
    record.first_tile = static_cast<int>(tiles_);
    record.first_term = static_cast<int>(terms_.size());
    for (const Term& term : product.terms) add<Shape>(term);
    record.terms = static_cast<int>(terms_.size()) - record.first_term;
    products_.push_back(record);
    tiles_ += tiles;
    require(tiles_ <= INT32_MAX, "product: too many tiles");
  }

  int64_t tiles() const { return tiles_; }

  std::vector<char> bytes() const {
    std::vector<char> all;
    append(all, maps_);
    append(all, std::vector<uint32_t>(kCounters));
    append(all, products_);
    append(all, terms_);
    return all;
  }

  TensorTable table(char* staged, int64_t early_tiles) const {
    TensorTable table{};
    table.maps = take<const TensorMap>(staged, maps_.size());
    table.counters = take<uint32_t>(staged, kCounters);
    table.products = take<const ProductRecord>(staged, products_.size());
    table.terms = take<const TensorTerm>(staged, terms_.size());
    table.product_count = static_cast<int>(products_.size());
    table.term_count = static_cast<int>(terms_.size());
    table.tiles = static_cast<int>(tiles_);
    table.early_tiles = static_cast<int>(early_tiles);
    return table;
  }

 private:
  static constexpr size_t kCounters = 4;  // two, and what keeps the records aligned

  template <typename Record>
  static void append(std::vector<char>& bytes, const std::vector<Record>& records) {
    const auto* from = reinterpret_cast<const char*>(records.data());
    bytes.insert(bytes.end(), from, from + records.size() * sizeof(Record));
  }
  template <typename Record>
  static Record* take(char*& staged, size_t count) {
    auto* records = reinterpret_cast<Record*>(staged);
    staged += count * sizeof(Record);
    return records;
  }

  template <typename Shape>
  void add(const Term& term) {
    const int64_t k = depth_of(term, form_), rows = term.end - term.begin;
    if (k == 0 || rows <= 0) return;
    TensorTerm record{};
    record.begin = static_cast<int>(term.begin);
    record.end = static_cast<int>(term.end);
    record.k = static_cast<int>(k);
    record.late = term.late;
    record.gates = term.gates;
    terms_.push_back(record);
    // The map of `a` has the term's rows alone: the others are zeros to whoever copies them.
    const bool by_columns = form_ == Form::kTN;
    const Matrix a = by_columns ? term.a.col_range(term.begin, rows) : term.a.row_range(term.begin, rows);
    add(a, by_columns ? kBoxCols : Shape::kRows);
    add(std::get<Matrix>(term.b), form_ == Form::kNT ? Shape::kCols : kBoxCols);
  }
  void add(const Matrix& operand, int box_rows) {
    require(is_operand(operand, type_), "product: an operand of another type, or not aligned");
    maps_.push_back(known_.of(operand, box_rows));
  }

  Form form_;
  DType type_;
  TensorMaps& known_;
  std::vector<TensorMap> maps_;
  std::vector<ProductRecord> products_;
  std::vector<TensorTerm> terms_;
  int64_t tiles_ = 0;
};

// f(a value of the chosen shape)
template <typename F>
void choose_shape(Form form, std::span<const Product> early, std::span<const Product> products, int multiprocessors,
                  F f) {
  int64_t rows = 0;
  for (const std::span<const Product> list : {early, products}) {
    for (const Product& product : list) rows = std::max(rows, product.end - product.begin);
  }
  if (form == Form::kNT && rows <= Few::kRows) return f(Few());
  if (form == Form::kTN || count_tiles<Wide>(early) + count_tiles<Wide>(products) < multiprocessors) return f(Middle());
  f(Wide());
}

template <typename T, Form form, typename Shape>
void launch_tiles(Stream stream, int blocks, const TensorTable& table) {
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads),
                          TensorProduct<T, form, Shape>::kSharedBytes};
  launch(stream, shape, multiply_tensor_tiles<T, form, Shape>, table);
}

template <typename T, typename Shape>
void launch_form(Stream stream, Form form, int blocks, const TensorTable& table) {
  switch (form) {
    case Form::kNT: return launch_tiles<T, Form::kNT, Shape>(stream, blocks, table);
    case Form::kNN:
      if constexpr (!std::is_same_v<Shape, Few>) launch_tiles<T, Form::kNN, Shape>(stream, blocks, table);
      return;
    case Form::kTN:
      if constexpr (std::is_same_v<Shape, Middle>) launch_tiles<T, Form::kTN, Shape>(stream, blocks, table);
  }
}

}  // namespace

bool CudaBackend::finds_wgmma() {
  const char* text = std::getenv("AT_MOE_CUDA_WGMMA");
  const std::string_view wanted = text ? text : "";
  if (wanted.empty() || wanted == "0" || size_of(activation_) != sizeof(uint16_t)) return false;
  if (wanted != "1") fail(Code::kUnsupported, "AT_MOE_CUDA_WGMMA is '", wanted, "': 0 or 1 was expected");
  constexpr int kHopper = 90;
  int answer = 0;
  if (runtime_->limits().architecture == kHopper) {
    int* asked = scratch<int>(0, 1);
    launch(stream(), {dim3(1), dim3(1)}, ask_for_wgmma, asked);
    runtime_->download(&answer, asked, sizeof(answer));
  }
  if (!answer)
    fail(Code::kUnsupported, "AT_MOE_CUDA_WGMMA=1 needs a GPU of compute capability 9.0 and a build for sm_90a");
  return true;
}

void CudaBackend::multiply_tensors(Form form, DType type, std::span<const Product> early,
                                   std::span<const Product> products) {
  choose_shape(form, early, products, runtime_->limits().multiprocessors, [&](auto chosen) {
    using Shape = decltype(chosen);
    TableBuilder builder(form, type, tensor_maps_);
    for (const Product& product : early) builder.add<Shape>(product);
    const int64_t early_tiles = builder.tiles();
    for (const Product& product : products) builder.add<Shape>(product);
    if (builder.tiles() == 0) return;
    const std::vector<char> bytes = builder.bytes();
    char* staged = const_cast<char*>(stage(std::span<const char>(bytes)));
    const TensorTable table = builder.table(staged, early_tiles);
    const int blocks = static_cast<int>(std::min<int64_t>(builder.tiles(), runtime_->limits().multiprocessors));
    if (type == DType::bf16) launch_form<bf16, Shape>(stream(), form, blocks, table);
    else launch_form<f16, Shape>(stream(), form, blocks, table);
  });
}

}  // namespace at_moe::cuda
