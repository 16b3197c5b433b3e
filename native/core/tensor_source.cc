#include "core/tensor_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/status.h"

namespace at_moe {

MappedFile::MappedFile(const std::string& path, Access access) : path_(path) {
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
  if (access == Access::once) madvise(data_, size_, MADV_SEQUENTIAL);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

void MappedFile::prefetch(size_t offset, size_t bytes) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page, end = std::min(offset + bytes, size_);
  if (end > begin) madvise(data_ + begin, end - begin, MADV_WILLNEED);
}

void MappedFile::populate(size_t offset, size_t bytes) const {
  prefetch(offset, bytes);
#ifdef MADV_POPULATE_READ
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page, end = std::min(offset + bytes, size_);
  // EINVAL: the system is older than the call.
  if (end > begin && madvise(data_ + begin, end - begin, MADV_POPULATE_READ) != 0 && errno != EINVAL)
    fail(Code::kIo, path_, ": reading failed: ", std::strerror(errno));
#endif
}

void MappedFile::release(size_t offset, size_t bytes) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + bytes) / page * page;
  if (end > begin) madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

const PackedSource::Section& PackedSource::section(const std::string& name) const {
  const auto at = sections.find(name);
  if (at == sections.end()) fail(Code::kBadFile, file->path(), ": no packed weight ", name);
  const Section& found = at->second;
  if (found.offset > file->size() || file->size() - found.offset < found.bytes)
    fail(Code::kBadFile, file->path(), ": ", name, " ends beyond the file of ", file->size(), " bytes");
  return found;
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

size_t TensorSource::bytes() const {
  return static_cast<size_t>(elements()) * (is_blocks(storage) ? sizeof(int8_t) : size_of(dtype()));
}

Q8Rows TensorSource::blocks() const {
  return {static_cast<const int8_t*>(data()), static_cast<const uint16_t*>(scales->data()), cols()};
}

void TensorSource::prefetch(int64_t row, int64_t count) const {
  const size_t row_bytes = bytes() / static_cast<size_t>(rows());
  const int64_t last = std::min(row + count, rows());
  if (row >= last) return;
  if (file) file->prefetch(offset + static_cast<size_t>(row) * row_bytes, static_cast<size_t>(last - row) * row_bytes);
  if (scales) scales->prefetch(row, count);
}

void TensorSource::release(int64_t row, int64_t count) const {
  const size_t row_bytes = bytes() / static_cast<size_t>(rows());
  if (file) file->release(offset + static_cast<size_t>(row) * row_bytes, static_cast<size_t>(count) * row_bytes);
  if (scales) scales->release(row, count);
}

namespace {

// The first whose magnitude is above `most`, all given as bits: magnitudes are ordered as their bits are.
template <typename Bits>
int64_t find_larger(const Bits* values, int64_t count, Bits most) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  constexpr int64_t kRun = 4096;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = begin + kRun < count ? begin + kRun : count;
    Bits any = 0;
    for (int64_t i = begin; i < end; ++i) any |= static_cast<Bits>((values[i] & kMagnitude) > most);
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) {
      if ((values[i] & kMagnitude) > most) return i;
    }
  }
  return -1;
}

int64_t find_larger(DType type, const void* values, int64_t count, float most) {
  if (type == DType::f32)
    return find_larger(static_cast<const uint32_t*>(values), count, std::bit_cast<uint32_t>(most));
  const auto* halves = static_cast<const uint16_t*>(values);
  const uint32_t of_bf16 = std::bit_cast<uint32_t>(most) >> 16;
  // No f16 that is finite reaches a bound that anyone sets.
  return find_larger(halves, count, static_cast<uint16_t>(type == DType::f16 ? 0x7BFF : of_bf16));
}

std::string place_of(const TensorSource& source) {
  return concat(source.file ? source.file->path() + ": " : std::string(), "tensor ", source.name);
}

void check_blocks(const TensorSource& source, int64_t row, int64_t count) {
  const Q8Rows rows = source.blocks().from_row(row);
  const int64_t blocks = q8_blocks(rows.cols);
  const uint16_t* last = rows.scales + count * blocks;
  const uint16_t* bad = std::find_if(rows.scales, last, [](uint16_t scale) { return scale >= 0x7C00; });
  if (bad != last) {
    fail(Code::kNotFinite, place_of(source), " has a scale that is negative or not finite at element ",
         row * blocks + (bad - rows.scales));
  }
  const int8_t* end = rows.values + count * rows.cols;
  const int8_t* lowest = std::find(rows.values, end, int8_t{-128});
  if (lowest != end) {
    fail(Code::kBadFile, place_of(source), " has the value -128 at element ", row * rows.cols + (lowest - rows.values),
         "; values of 8 bits are -127 to 127");
  }
}

}  // namespace

void check_rows(const TensorSource& source, int64_t row, int64_t count, float most) {
  if (is_blocks(source.storage)) return check_blocks(source, row, count);
  const int64_t first = row * source.cols(), elements = count * source.cols();
  const DType type = source.dtype();
  const char* data = static_cast<const char*>(source.data()) + static_cast<size_t>(first) * size_of(type);
  const int64_t at = find_larger(type, data, elements, most);
  if (at < 0) return;
  const float value = to_float(type, data, at);
  if (!std::isfinite(value)) {
    fail(Code::kNotFinite, place_of(source), " has a value that is not finite at element ", first + at);
  }
  fail(Code::kUnsupported, place_of(source), " has the value ", value, " at element ", first + at,
       ", beyond the largest that can be stored, ", most);
}

std::vector<float> widen(const TensorSource& source) { return widen(source, 0, source.rows()); }

std::vector<float> widen(const TensorSource& source, int64_t row, int64_t count) {
  check_rows(source, row, count);
  if (is_blocks(source.storage)) return source.blocks().from_row(row).widen(count);
  const DType type = source.dtype();
  const char* data = static_cast<const char*>(source.data()) + static_cast<size_t>(row * source.cols()) * size_of(type);
  std::vector<float> values(static_cast<size_t>(count * source.cols()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(type, data, static_cast<int64_t>(i));
  return values;
}

}  // namespace at_moe
