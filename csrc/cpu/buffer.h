// Aligned memory for vector loads.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace densitrace::cpu {

constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector

// `count` uninitialised values, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kAlignment}))) {}

  T* get() const { return data_.get(); }
  T& operator[](std::size_t i) const { return data_.get()[i]; }

  // Passes ownership to the caller, who frees the memory with `free`.
  T* release() { return data_.release(); }
  static void free(void* data) { ::operator delete(data, std::align_val_t{kAlignment}); }

 private:
  struct Free {
    void operator()(T* data) const { free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

constexpr std::size_t round_up(std::size_t value, std::size_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace densitrace::cpu
