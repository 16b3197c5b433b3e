// The left sides of products in the forms that they read (product.h).
#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/product.h"

namespace at_moe {

using cpu::ConvertedRows;
using cpu::divide_up;
using cpu::DotKernels;
using cpu::Forms;
using cpu::kDotBlock;
using cpu::Operand;
using cpu::Product;
using cpu::ProductKernels;
using cpu::Term;

namespace {

// Of converted rows: an odd number of cache lines, so that the blocks of a row lie in different sets.
int64_t block_bytes(const DotKernels& kernels, int64_t rows) {
  return (divide_up(rows * kernels.row_bytes, 64) | 1) * 64;
}

int64_t converted_bytes(const DotKernels& kernels, int64_t rows, int64_t cols) {
  return divide_up(cols, kDotBlock) * block_bytes(kernels, rows);
}

}  // namespace

ProductKernels CpuBackend::product_kernels() const { return {kernels_, integers_, pairs_}; }

ConvertedRows CpuBackend::convert_rows(const DotKernels& kernels, const Matrix& x, char* memory) {
  constexpr int64_t kPiece = 32 * kDotBlock, kGrain = 4;
  const int64_t block = block_bytes(kernels, x.rows), pieces = divide_up(x.cols, kPiece);
  pool_.run_ranges(x.rows * pieces, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / pieces, from = piece % pieces * kPiece;
      kernels.convert(x.row(row) + from, std::min(kPiece, x.cols - from),
                      memory + from / kDotBlock * block + row * kernels.row_bytes, block);
    }
  });
  return {memory, block};
}

Operand CpuBackend::operand(int slot, const Matrix& x, const Forms& forms) {
  require(slot < kOperands, "linear: too many modules in a group");
  Operand operand;
  operand.rows = x;
  const auto convert = [&](const DotKernels& kernels, Form form) {
    return convert_rows(kernels, x, operand_scratch(slot, form, converted_bytes(kernels, x.rows, x.cols)));
  };
  if (forms.bytes) operand.bytes = convert(*integers_, Form::kBytes);
  if (forms.pairs) operand.pairs = convert(*pairs_, Form::kPairs);
  return operand;
}

void CpuBackend::convert_operands(std::span<Product> products) {
  const ProductKernels kernels = product_kernels();
  const auto for_unready = [&](auto&& each) {
    for (Product& product : products) {
      for (Term& term : product.terms) {
        const DotKernels* dots = kernels.dots(*term.weight, term.transposed);
        if (dots && !term.converted().data) each(*dots, term);
      }
    }
  };
  int64_t bytes = 0;
  for_unready([&](const DotKernels& dots, const Term& term) {
    bytes += converted_bytes(dots, term.end - term.begin, term.a.rows.cols);
  });
  if (bytes == 0) return;
  char* memory = static_cast<char*>(grow(converted_scratch_, static_cast<size_t>(bytes)));
  for_unready([&](const DotKernels& dots, Term& term) {
    const Matrix rows = term.a.rows.row_range(term.begin, term.end - term.begin);
    ConvertedRows& converted = term.converted();
    converted = convert_rows(dots, rows, memory);
    converted.first = term.begin;
    memory += converted_bytes(dots, rows.rows, rows.cols);
  });
}

}  // namespace at_moe
