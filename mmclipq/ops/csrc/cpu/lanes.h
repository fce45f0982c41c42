// Vectors of kLanes integers, and how any vector is read and written. Included once for each kind of
// processor, inside of a namespace that has kLanes, as vector.h says. Hence no include guard.

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

template <typename V, typename T>
CLIPQ_INLINE V load(const T *from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
CLIPQ_INLINE void store(V v, T *to) {
  __builtin_memcpy(to, &v, sizeof(V));
}
