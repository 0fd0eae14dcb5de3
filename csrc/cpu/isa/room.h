// Memory of one call that is not of one thread: see ThreadPool::scratch for that.
#pragma once
#include <cstdint>
#include <new>

namespace saccade {
namespace SACCADE_ISA {

// Room for so many T, unset, whole lines of the caches; none until there is a count. Raises
// std::bad_alloc.
template <class T>
class Room {
 public:
  Room() = default;
  explicit Room(int64_t count)
      : at_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kLines))) {}
  Room(Room&& other) noexcept : at_(other.at_) { other.at_ = nullptr; }
  Room& operator=(Room&& other) noexcept {
    T* own = at_;
    at_ = other.at_;
    other.at_ = own;
    return *this;
  }
  ~Room() {
    if (at_ != nullptr) ::operator delete(at_, kLines);
  }

  T* get() const { return at_; }
  T& operator[](int64_t index) const { return at_[index]; }

 private:
  static constexpr std::align_val_t kLines{64};
  T* at_ = nullptr;
};

}  // namespace SACCADE_ISA
}  // namespace saccade
