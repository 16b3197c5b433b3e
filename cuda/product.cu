// Launches of products (cuda/product.cuh). Those of few rows are phases, the early ones before the others; of many rows, a
// launch has all tiles, the early ones first. Tiles of a product that share columns follow each other, so that a weight is
// read from memory once. The number of rows and of tiles chooses among three tile shapes, which changes no bits.
#include "cuda/product.cuh"

#include <algorithm>
#include <variant>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"

namespace at_moe::cuda {

namespace {

Operand operand_of(const Matrix& matrix, DType type) {
  require(is_operand(matrix, type), "product: an operand of another type, or not aligned");
  return {matrix.data, matrix.stride};
}

TermRecord record_of(const Term& term, Form form, DType type) {
  TermRecord record{};
  record.a = operand_of(term.a, type);
  if (const auto* blocks = std::get_if<BlockMatrix>(&term.b)) {
    require(form != Form::kTN, "product: blocks as values to be turned");
    record.blocks = {blocks->values, blocks->scales, static_cast<int>(blocks->rows), static_cast<int>(blocks->stride),
                     static_cast<int>(blocks->scale_stride)};
  } else {
    record.b = operand_of(std::get<Matrix>(term.b), type);
  }
  record.begin = static_cast<int>(term.begin);
  record.end = static_cast<int>(term.end);
  record.k = static_cast<int>(depth_of(term, form));
  record.late = term.late;
  record.gates = term.gates;
  record.open = term.open;
  return record;
}

// The records of products that share a launch, their tiles one after another.
class TableBuilder {
 public:
  TableBuilder(Form form, DType type) : form_(form), type_(type) {}

  template <typename Shape>
  void add(const Product& product) {
    const int64_t tiles = tiles_of<Shape>(product);
    if (tiles == 0) return;
    ProductRecord record = record_of<Shape>(product, type_);
    record.first_tile = static_cast<int>(tiles_);
    record.first_term = static_cast<int>(terms_.size());
    products_.push_back(record);
    for (const Term& term : product.terms) terms_.push_back(record_of(term, form_, type_));
    tiles_ += tiles;
    require(tiles_ <= INT32_MAX, "product: too many tiles");
  }

  int64_t tiles() const { return tiles_; }
  // To be copied to the device in one: counters (0), products, terms.
  std::vector<char> bytes() const {
    std::vector<char> all(kProductsAt);
    for (const ProductRecord& record : products_) append(all, record);
    for (const TermRecord& record : terms_) append(all, record);
    return all;
  }
  ProductTable table(const char* staged) const {
    return {reinterpret_cast<const ProductRecord*>(staged + kProductsAt),
            reinterpret_cast<const TermRecord*>(staged + kProductsAt + products_.size() * sizeof(ProductRecord)),
            static_cast<int>(products_.size())};
  }
  EarlyTiles early(const char* staged, int64_t tiles) const {
    return {static_cast<int>(tiles), reinterpret_cast<uint32_t*>(const_cast<char*>(staged))};
  }

 private:
  static constexpr size_t kProductsAt = 16;
  template <typename Record>
  static void append(std::vector<char>& bytes, const Record& record) {
    const auto* from = reinterpret_cast<const char*>(&record);
    bytes.insert(bytes.end(), from, from + sizeof(Record));
  }

  Form form_;
  DType type_;
  std::vector<ProductRecord> products_;
  std::vector<TermRecord> terms_;
  int64_t tiles_ = 0;
};

// Rows of the operands, of which the products may have a few only.
int64_t operand_rows(std::span<const Product> early, std::span<const Product> products) {
  int64_t rows = 0;
  for (const std::span<const Product> list : {early, products}) {
    for (const Product& product : list) {
      for (const Term& term : product.terms) rows = std::max(rows, term.a.rows);
    }
  }
  return rows;
}

Matrix routing_of(const Product& product) {
  return {const_cast<float*>(product.gates.routing), product.end, product.gates.stride, product.gates.stride};
}

bool any_blocks(std::span<const Product> products) {
  return std::any_of(products.begin(), products.end(), [](const Product& product) {
    return std::any_of(product.terms.begin(), product.terms.end(),
                       [](const Term& term) { return std::holds_alternative<BlockMatrix>(term.b); });
  });
}

// f(a value of the chosen shape)
template <bool has_blocks, typename F>
void choose_shape(Form form, std::span<const Product> early, std::span<const Product> products, int multiprocessors,
                  F f) {
  using Large = Wide<has_blocks>;
  int64_t rows = 0;
  for (const std::span<const Product> list : {early, products}) {
    for (const Product& product : list) rows = std::max(rows, product.end - product.begin);
  }
  if (form != Form::kTN && rows <= Narrow::kRows) return f(Narrow());
  const bool few = form != Form::kTN && rows <= Middle::kRows;
  if (few || count_tiles<Large>(early) + count_tiles<Large>(products) < multiprocessors) return f(Middle());
  f(Large());
}

template <typename T, Form form, typename Shape, bool has_blocks>
void launch_tiles(Stream stream, int64_t tiles, const ProductTable& table, const EarlyTiles& early) {
  using Tile = ProductTile<T, form, Shape>;
  const size_t wide = has_blocks && form == Form::kNN ? sizeof(T) * Tile::B::kElements : 0;
  const LaunchShape shape{dim3(static_cast<unsigned>(tiles)), dim3(Shape::kThreads), Tile::kSharedBytes + wide};
  launch(stream, shape, multiply_tiles<T, form, Shape, has_blocks>, table, early);
}

template <typename T, typename Shape, bool has_blocks>
void launch_form(Stream stream, Form form, int64_t tiles, const ProductTable& table, const EarlyTiles& early) {
  switch (form) {
    case Form::kNT: return launch_tiles<T, Form::kNT, Shape, has_blocks>(stream, tiles, table, early);
    case Form::kNN: return launch_tiles<T, Form::kNN, Shape, has_blocks>(stream, tiles, table, early);
    case Form::kTN:
      if constexpr (!std::is_same_v<Shape, Narrow> && !has_blocks) {
        launch_tiles<T, Form::kTN, Shape, has_blocks>(stream, tiles, table, early);
      }
  }
}

}  // namespace

template <typename Shape>
void CudaBackend::add_products(std::span<const Product> products) {
  TableBuilder builder(Form::kNT, activation_);
  for (const Product& product : products) builder.add<Shape>(product);
  if (builder.tiles() == 0) return;
  commands_.open(std::is_same_v<Shape, Narrow> ? PhaseTile::kNarrow : PhaseTile::kMiddle, any_blocks(products));
  const std::vector<char> bytes = builder.bytes();
  ProductPhase phase{builder.table(commands_.put(std::span<const char>(bytes))), builder.tiles(), 0, true};
  for (const Product& product : products) {
    for (const Term& term : product.terms) {
      require(!term.open, "product: a selection of few rows");  // might be read before an earlier phase writes it
      if (!term.late) phase.operands_ready = std::max(phase.operands_ready, commands_.writer(term.a) + 1);
    }
    if (!product.gates.column) continue;
    const int router = commands_.writer(routing_of(product));
    if (router < 0) continue;
    if (commands_.is_selecting(router)) phase.operands_ready = std::max(phase.operands_ready, router + 1);
    else phase.selects = false;
  }
  std::vector<Matrix> written;
  for (const Product& product : products) {
    for (const Matrix& matrix : {product.out, product.raw, product.operand, product.rest}) {
      if (matrix) written.push_back(matrix.row_range(product.begin, product.end - product.begin));
    }
  }
  commands_.add(PhaseKind::kProduct, phase, written);
}

void CudaBackend::multiply(Form form, DType type, std::span<const Product> early, std::span<const Product> products) {
  if (uses_wgmma_ && type == activation_ && !any_blocks(products)) return multiply_tensors(form, type, early, products);
  if (const int64_t rows = operand_rows(early, products); form == Form::kNT && joins(rows, type)) {
    for (const std::span<const Product> list : {early, products}) {
      if (rows <= Narrow::kRows) add_products<Narrow>(list);
      else add_products<Middle>(list);
    }
    return;
  }
  const auto run = [&](auto has_blocks) {
    constexpr bool kBlocks = decltype(has_blocks)::value;
    choose_shape<kBlocks>(form, early, products, runtime_->limits().multiprocessors, [&](auto chosen) {
      using Shape = decltype(chosen);
      TableBuilder builder(form, type);
      for (const Product& product : early) builder.add<Shape>(product);
      const int64_t early_tiles = builder.tiles();
      for (const Product& product : products) builder.add<Shape>(product);
      if (builder.tiles() == 0) return;
      const std::vector<char> bytes = builder.bytes();
      const char* staged = stage(std::span<const char>(bytes));
      const ProductTable table = builder.table(staged);
      const EarlyTiles first = builder.early(staged, early_tiles);
      dispatch(type, [&](auto element) {
        launch_form<decltype(element), Shape, kBlocks>(stream(), form, builder.tiles(), table, first);
      });
    });
  };
  if (any_blocks(products)) run(std::true_type());
  else run(std::false_type());
}

}  // namespace at_moe::cuda
