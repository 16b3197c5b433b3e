// Where the bytes of a stored tensor lie: in a mapped file or in memory. Checked by lib before it gets here; the file size
// is checked again, because a file can change between the two.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "core/q8.h"

namespace at_moe {

// A read-only mapping of a whole file.
class MappedFile {
 public:
  // `once`: what is read is read from front to back, and not again.
  enum class Access { once, often };
  explicit MappedFile(const std::string& path, Access access = Access::once);  // fails with kIo
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Copies a range that lies inside, without touching the mapping: cheaper than first touches of its pages. Fails with kIo.
  void read(size_t offset, size_t bytes, void* to) const;
  // Starts reading a range, and gives the whole pages of one back to the system; they are read again when touched.
  void prefetch(size_t offset, size_t bytes) const;
  // Waits until a range is read, where the system can say so. Fails with kIo when it cannot be read.
  void populate(size_t offset, size_t bytes) const;
  void release(size_t offset, size_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Row-major numbers, without gaps.
struct NumberRows {
  const void* values = nullptr;
  DType type = DType::f32;
  int64_t cols = 0;

  int64_t row_bytes() const { return cols * static_cast<int64_t>(size_of(type)); }
  NumberRows from_row(int64_t row) const { return {static_cast<const char*>(values) + row * row_bytes(), type, cols}; }
};
using StoredRows = std::variant<NumberRows, Q8Rows>;

struct TensorSource {
  std::string name;
  Storage storage = Storage::f32;
  std::vector<int64_t> shape;
  std::shared_ptr<const MappedFile> file;  // either file and offset …
  size_t offset = 0;
  std::shared_ptr<const std::vector<uint8_t>> memory;  // … or memory
  std::shared_ptr<const TensorSource> scales;          // of q8, whose own bytes are the values: f16 [rows, blocks]

  DType dtype() const { return number_type(storage); }
  int64_t rows() const { return shape.size() == 1 ? 1 : shape.front(); }
  int64_t cols() const { return shape.back(); }
  int64_t elements() const;
  size_t bytes() const;      // of the elements; without the scales of q8
  const void* data() const;  // fails with kBadFile when the file is too short
  size_t row_bytes() const;  // of its elements, and its scales
  StoredRows all() const;    // as data()
  // Rows [row, row + count): where they lie in memory, or read from the file into `buffer`, of as many times row_bytes().
  StoredRows read(int64_t row, int64_t count, void* buffer) const;
  void prefetch(int64_t row, int64_t count) const;  // those of the rows that there are
  void release(int64_t row, int64_t count) const;   // after their last read of data()

 private:
  void check_size() const;
  const void* read_bytes(int64_t row, int64_t count, void* buffer) const;  // without the scales
};

// A file of packed weights: where the bytes of each begin, and how many there are.
struct PackedSource {
  struct Section {
    size_t offset = 0, bytes = 0;
  };
  std::shared_ptr<const MappedFile> file;
  std::map<std::string, Section> sections;

  const Section& section(
      const std::string& name) const;  // fails with kBadFile without it, or when the file is too short
};

// Fails naming the tensor and the first of the rows' elements that is infinite or NaN (kNotFinite), or whose magnitude is
// above `most` (kUnsupported). The values of q8 are checked to be what core/q8.h says (kBadFile).
void check_rows(const TensorSource& source, int64_t row, int64_t count, float most = std::numeric_limits<float>::max());
// The same of rows that have been read.
void check_rows(const TensorSource& source, int64_t row, int64_t count, const StoredRows& rows, float most);

// All elements, or those of some rows, widened and checked.
std::vector<float> widen(const TensorSource& source);
std::vector<float> widen(const TensorSource& source, int64_t row, int64_t count);

}  // namespace at_moe
