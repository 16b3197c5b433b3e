// Where the bytes of a stored tensor lie: in a mapped file or in memory. Checked by lib before it gets here; the file size
// is checked again, because a file can change between the two.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace at_moe {

// A read-only mapping of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // fails with kIo
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives the pages of a range back to the system; they are read again when touched.
  void release(size_t offset, size_t bytes) const;

 private:
  std::string path_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::shared_ptr<const MappedFile> file;  // either file and offset …
  size_t offset = 0;
  std::shared_ptr<const std::vector<uint8_t>> memory;  // … or memory

  int64_t elements() const;
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  const void* data() const;  // fails with kBadFile when the file is too short
  void release() const;      // after the last read
};

// Fails with kNotFinite naming the tensor when one of the elements [first, first + count) is infinite or NaN.
void check_finite(const TensorSource& source, int64_t first, int64_t count);

// All elements widened, checked to be finite.
std::vector<float> widen(const TensorSource& source);

}  // namespace at_moe
