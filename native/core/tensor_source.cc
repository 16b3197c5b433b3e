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

MappedFile::MappedFile(const std::string& path, Access access)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail(Code::kIo, path, ": ", std::strerror(errno));
  struct stat info;
  const bool known = fstat(descriptor_, &info) == 0;
  size_ = known ? static_cast<size_t>(info.st_size) : 0;
  void* mapped = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0) : MAP_FAILED;
  if (mapped == MAP_FAILED) {
    const int error = errno;
    close(descriptor_);
    fail(Code::kIo, path, ": cannot map ", size_, " bytes: ", std::strerror(error));
  }
  data_ = static_cast<uint8_t*>(mapped);
  if (access == Access::once) madvise(data_, size_, MADV_SEQUENTIAL);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
  close(descriptor_);
}

void MappedFile::read(size_t offset, size_t bytes, void* to) const {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got =
        pread(descriptor_, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(Code::kIo, path_, ": reading failed: ", std::strerror(errno));
    if (got == 0) fail(Code::kIo, path_, ": the file became shorter while it was read");
    done += static_cast<size_t>(got);
  }
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

void TensorSource::check_size() const {
  if (memory && memory->size() < bytes())
    fail(Code::kBadFile, "tensor ", name, ": ", memory->size(), " bytes, needs ", bytes());
  if (!memory && (offset > file->size() || file->size() - offset < bytes()))
    fail(Code::kBadFile, file->path(), ": tensor ", name, " ends beyond the file of ", file->size(), " bytes");
}

const void* TensorSource::data() const {
  check_size();
  return memory ? memory->data() : file->data() + offset;
}

size_t TensorSource::bytes() const {
  return static_cast<size_t>(elements()) * (is_blocks(storage) ? sizeof(int8_t) : size_of(dtype()));
}

size_t TensorSource::row_bytes() const {
  return bytes() / static_cast<size_t>(rows()) + (scales ? scales->row_bytes() : 0);
}

const void* TensorSource::read_bytes(int64_t row, int64_t count, void* buffer) const {
  const size_t row_bytes = bytes() / static_cast<size_t>(rows()), first = static_cast<size_t>(row) * row_bytes;
  if (memory) return static_cast<const uint8_t*>(data()) + first;
  check_size();
  file->read(offset + first, static_cast<size_t>(count) * row_bytes, buffer);
  return buffer;
}

StoredRows TensorSource::all() const {
  if (!is_blocks(storage)) return NumberRows{data(), dtype(), cols()};
  return Q8Rows{static_cast<const int8_t*>(data()), static_cast<const uint16_t*>(scales->data()), cols()};
}

StoredRows TensorSource::read(int64_t row, int64_t count, void* buffer) const {
  if (!is_blocks(storage)) return NumberRows{read_bytes(row, count, buffer), dtype(), cols()};
  // The scales first: they need the alignment.
  const void* own_scales = scales->read_bytes(row, count, buffer);
  void* rest = static_cast<uint8_t*>(buffer) + static_cast<size_t>(count) * scales->row_bytes();
  const void* values = read_bytes(row, count, rest);
  return Q8Rows{static_cast<const int8_t*>(values), static_cast<const uint16_t*>(own_scales), cols()};
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

void check_blocks(const TensorSource& source, int64_t row, int64_t count, const Q8Rows& rows) {
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

void check_numbers(const TensorSource& source, int64_t row, int64_t count, const NumberRows& rows, float most) {
  const int64_t at = find_larger(rows.type, rows.values, count * rows.cols, most);
  if (at < 0) return;
  const int64_t element = row * rows.cols + at;
  const float value = to_float(rows.type, rows.values, at);
  if (!std::isfinite(value)) {
    fail(Code::kNotFinite, place_of(source), " has a value that is not finite at element ", element);
  }
  fail(Code::kUnsupported, place_of(source), " has the value ", value, " at element ", element,
       ", beyond the largest that can be stored, ", most);
}

}  // namespace

void check_rows(const TensorSource& source, int64_t row, int64_t count, const StoredRows& rows, float most) {
  if (const auto* blocks = std::get_if<Q8Rows>(&rows)) return check_blocks(source, row, count, *blocks);
  check_numbers(source, row, count, std::get<NumberRows>(rows), most);
}

void check_rows(const TensorSource& source, int64_t row, int64_t count, float most) {
  const StoredRows rows = std::visit([row](const auto& all) -> StoredRows { return all.from_row(row); }, source.all());
  check_rows(source, row, count, rows, most);
}

std::vector<float> widen(const TensorSource& source) { return widen(source, 0, source.rows()); }

std::vector<float> widen(const TensorSource& source, int64_t row, int64_t count) {
  std::vector<uint16_t> buffer(source.file ? (static_cast<size_t>(count) * source.row_bytes() + 1) / 2 : 0);
  const StoredRows rows = source.read(row, count, buffer.data());
  check_rows(source, row, count, rows, std::numeric_limits<float>::max());
  if (const auto* blocks = std::get_if<Q8Rows>(&rows)) return blocks->widen(count);
  const auto& numbers = std::get<NumberRows>(rows);
  std::vector<float> values(static_cast<size_t>(count * numbers.cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = to_float(numbers.type, numbers.values, static_cast<int64_t>(i));
  }
  return values;
}

}  // namespace at_moe
