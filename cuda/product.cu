// Launches of the product kernel (cuda/product.cuh). One launch has all tiles of all its products, those of the early
// ones first; tiles of a product that share columns follow each other, so that a weight is read from memory once. The
// number of rows and of tiles chooses among three tile shapes, which changes no bits.
#include "cuda/product.cuh"

#include <algorithm>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

using Narrow = TileShape<16, 32, 256, 1, 4, 4>;  // decode: deep copies of few weight rows, bound by memory
using Middle = TileShape<64, 32, 128, 2, 2, 4>;  // batched decode, and where wide tiles would be too few
using Wide = TileShape<128, 128, 64, 2, 4, 3>;   // prefill and training

int64_t tiles_of(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

template <typename Shape>
int64_t tiles_of(const Product& product) {
  return tiles_of(product.end - product.begin, Shape::kRows) * tiles_of(product.cols, Shape::kCols);
}

template <typename Shape>
int64_t count_tiles(std::span<const Product> products) {
  int64_t tiles = 0;
  for (const Product& product : products) tiles += tiles_of<Shape>(product);
  return tiles;
}

Operand operand_of(const Matrix& matrix, DType type) {
  require(is_operand(matrix, type), "product: an operand of another type, or not aligned");
  return {matrix.data, matrix.stride};
}

Target target_of(const Matrix& matrix, DType type) {
  require(!matrix || matrix.dtype == type || matrix.dtype == DType::f32, "product: a result of another type");
  return {matrix.data, matrix.stride, matrix.dtype == DType::f32, in_pieces(matrix, 2)};
}

TermRecord record_of(const Term& term, Form form, DType type) {
  const int64_t k = form == Form::kTN ? term.a.rows : term.a.cols;
  require(k == (form == Form::kNT ? term.b.cols : term.b.rows), "product: ", k, " columns by ", term.b.rows, " x ",
          term.b.cols);
  TermRecord record{};
  record.a = operand_of(term.a, type);
  record.b = operand_of(term.b, type);
  record.begin = static_cast<int>(term.begin);
  record.end = static_cast<int>(term.end);
  record.k = static_cast<int>(k);
  record.late = term.late;
  record.gates = term.gates;
  record.open = term.open;
  return record;
}

// The table of a launch, as bytes to stage: counters, products, terms.
class TableBuilder {
 public:
  TableBuilder(Form form, DType type) : form_(form), type_(type) {}

  template <typename Shape>
  void add(const Product& product) {
    const int64_t tiles = tiles_of<Shape>(product);
    if (tiles == 0) return;
    ProductRecord record{};
    record.begin = static_cast<int>(product.begin);
    record.end = static_cast<int>(product.end);
    record.cols = static_cast<int>(product.cols);
    record.first_tile = static_cast<int>(tiles_);
    record.row_tiles = static_cast<int>(tiles_of(product.end - product.begin, Shape::kRows));
    record.first_term = static_cast<int>(terms_.size());
    record.terms = static_cast<int>(product.terms.size());
    record.bias = product.bias;
    record.out = target_of(product.out, type_);
    record.add = target_of(product.add, type_);
    record.raw = target_of(product.raw, type_);
    record.operand = target_of(product.operand, type_);
    record.gates = product.gates;
    record.scale = product.scale;
    products_.push_back(record);
    for (const Term& term : product.terms) terms_.push_back(record_of(term, form_, type_));
    tiles_ += tiles;
    require(tiles_ <= INT32_MAX, "product: too many tiles");
  }

  int64_t tiles() const { return tiles_; }
  int count() const { return static_cast<int>(products_.size()); }

  std::vector<char> bytes() const {
    std::vector<char> all(kProductsAt);
    for (const ProductRecord& record : products_) append(all, record);
    for (const TermRecord& record : terms_) append(all, record);
    return all;
  }
  ProductTable table(char* staged, int64_t early_tiles) const {
    return {reinterpret_cast<const ProductRecord*>(staged + kProductsAt),
            reinterpret_cast<const TermRecord*>(staged + terms_at()), count(), static_cast<int>(early_tiles),
            reinterpret_cast<uint32_t*>(staged)};
  }

 private:
  static constexpr size_t kProductsAt = 16;
  template <typename Record>
  static void append(std::vector<char>& bytes, const Record& record) {
    const auto* from = reinterpret_cast<const char*>(&record);
    bytes.insert(bytes.end(), from, from + sizeof(Record));
  }
  size_t terms_at() const { return kProductsAt + products_.size() * sizeof(ProductRecord); }

  Form form_;
  DType type_;
  std::vector<ProductRecord> products_;
  std::vector<TermRecord> terms_;
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
  if (form != Form::kTN && rows <= Narrow::kRows) return f(Narrow());
  const bool few = form != Form::kTN && rows <= Middle::kRows;
  if (few || count_tiles<Wide>(early) + count_tiles<Wide>(products) < multiprocessors) return f(Middle());
  f(Wide());
}

template <typename T, Form form, typename Shape>
void launch_tiles(Stream stream, int64_t tiles, const ProductTable& table) {
  const LaunchShape shape{dim3(static_cast<unsigned>(tiles)), dim3(Shape::kThreads),
                          ProductTile<T, form, Shape>::kSharedBytes};
  launch(stream, shape, multiply_tiles<T, form, Shape>, table);
}

template <typename T, typename Shape>
void launch_form(Stream stream, Form form, int64_t tiles, const ProductTable& table) {
  switch (form) {
    case Form::kNT: return launch_tiles<T, Form::kNT, Shape>(stream, tiles, table);
    case Form::kNN: return launch_tiles<T, Form::kNN, Shape>(stream, tiles, table);
    case Form::kTN:
      if constexpr (!std::is_same_v<Shape, Narrow>) launch_tiles<T, Form::kTN, Shape>(stream, tiles, table);
  }
}

}  // namespace

void CudaBackend::multiply(Form form, DType type, std::span<const Product> early, std::span<const Product> products) {
  choose_shape(form, early, products, runtime_->limits().multiprocessors, [&](auto chosen) {
    using Shape = decltype(chosen);
    TableBuilder builder(form, type);
    for (const Product& product : early) builder.add<Shape>(product);
    const int64_t early_tiles = builder.tiles();
    for (const Product& product : products) builder.add<Shape>(product);
    if (builder.tiles() == 0) return;
    const std::vector<char> bytes = builder.bytes();
    // The counters of a launch are staged with its table, zero, and are the launch's own.
    char* staged = const_cast<char*>(stage(std::span<const char>(bytes)));
    const ProductTable table = builder.table(staged, early_tiles);
    dispatch(type,
             [&](auto element) { launch_form<decltype(element), Shape>(stream(), form, builder.tiles(), table); });
  });
}

}  // namespace at_moe::cuda
