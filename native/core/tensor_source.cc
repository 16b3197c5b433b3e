#include "core/tensor_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/status.h"

namespace at_moe {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(Code::kIo, path, ": ", std::strerror(errno));
  struct stat info;
  const bool known = fstat(descriptor, &info) == 0;
  size_ = known ? static_cast<size_t>(info.st_size) : 0;
  void* mapped = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  const int error = errno;
  close(descriptor);
  if (mapped == MAP_FAILED) fail(Code::kIo, path, ": cannot map ", size_, " bytes: ", std::strerror(error));
  data_ = static_cast<uint8_t*>(mapped);
  madvise(data_, size_, MADV_SEQUENTIAL);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

void MappedFile::release(size_t offset, size_t bytes) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + bytes) / page * page;
  if (end > begin) madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

int64_t TensorSource::elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

const void* TensorSource::data() const {
  if (memory) {
    if (memory->size() < bytes())
      fail(Code::kBadFile, "tensor ", name, ": ", memory->size(), " bytes, needs ", bytes());
    return memory->data();
  }
  if (offset > file->size() || file->size() - offset < bytes()) {
    fail(Code::kBadFile, file->path(), ": tensor ", name, " ends beyond the file of ", file->size(), " bytes");
  }
  return file->data() + offset;
}

void TensorSource::release() const {
  if (file) file->release(offset, bytes());
}

namespace {

// A value is not finite exactly when all exponent bits are set.
template <typename Bits>
int64_t find_not_finite(const Bits* values, int64_t count, Bits exponent) {
  constexpr int64_t kRun = 4096;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = begin + kRun < count ? begin + kRun : count;
    Bits any = 0;
    for (int64_t i = begin; i < end; ++i) any |= static_cast<Bits>((values[i] & exponent) == exponent);
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) {
      if ((values[i] & exponent) == exponent) return i;
    }
  }
  return -1;
}

}  // namespace

void check_finite(const TensorSource& source, int64_t first, int64_t count) {
  const char* data = static_cast<const char*>(source.data()) + static_cast<size_t>(first) * size_of(source.dtype);
  int64_t at = -1;
  if (source.dtype == DType::f32) {
    at = find_not_finite(reinterpret_cast<const uint32_t*>(data), count, uint32_t{0x7f800000});
  } else {
    const uint16_t exponent = source.dtype == DType::f16 ? 0x7c00 : 0x7f80;
    at = find_not_finite(reinterpret_cast<const uint16_t*>(data), count, exponent);
  }
  if (at < 0) return;
  const std::string where = source.file ? source.file->path() + ": " : std::string();
  fail(Code::kNotFinite, where, "tensor ", source.name, " has a value that is not finite at element ", first + at);
}

std::vector<float> widen(const TensorSource& source) {
  check_finite(source, 0, source.elements());
  std::vector<float> values(static_cast<size_t>(source.elements()));
  const void* data = source.data();
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(source.dtype, data, static_cast<int64_t>(i));
  return values;
}

}  // namespace at_moe
