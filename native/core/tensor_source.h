// Where the bytes of a stored tensor lie: in a mapped file or in memory. Checked by lib before it gets here; the file size
// is checked again, because a file can change between the two.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
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
  // Starts reading a range, and gives the whole pages of one back to the system; they are read again when touched.
  void prefetch(size_t offset, size_t bytes) const;
  // Waits until a range is read, where the system can say so. Fails with kIo when it cannot be read.
  void populate(size_t offset, size_t bytes) const;
  void release(size_t offset, size_t bytes) const;

 private:
  std::string path_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

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
  size_t bytes() const;                             // of the elements; without the scales of q8
  const void* data() const;                         // fails with kBadFile when the file is too short
  Q8Rows blocks() const;                            // of q8
  void prefetch(int64_t row, int64_t count) const;  // those of the rows that there are
  void release(int64_t row, int64_t count) const;   // after their last read
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

// All elements, or those of some rows, widened and checked.
std::vector<float> widen(const TensorSource& source);
std::vector<float> widen(const TensorSource& source, int64_t row, int64_t count);

}  // namespace at_moe
