#include "core/tensor_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
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
    if (memory->size() < bytes()) fail(Code::kBadFile, "tensor ", name, ": ", memory->size(), " bytes, needs ", bytes());
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

std::vector<float> widen(const TensorSource& source) {
  std::vector<float> values(static_cast<size_t>(source.elements()));
  const void* data = source.data();
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = to_float(source.dtype, data, static_cast<int64_t>(i));
    if (!std::isfinite(values[i])) {
      const std::string where = source.file ? source.file->path() + ": " : std::string();
      fail(Code::kNotFinite, where, "tensor ", source.name, " has a value that is not finite at element ", i);
    }
  }
  return values;
}

}  // namespace at_moe
