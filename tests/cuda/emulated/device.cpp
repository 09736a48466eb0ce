// A CUDA device for a machine without one. Its memory is the host's and its kernels are the CPU's, so its numbers are
// real; what a GPU refuses is refused (tensors of two devices in one operation), and what makes the host wait for a GPU
// is told, as is each kernel. It has no compiler, graphs, NCCL, time or races of its own. For tests alone.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <malloc.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>

using namespace at;

namespace emulated {

const Device kDevice(DeviceType::CUDA, 0);
const DispatchKeySet kKey(DispatchKey::CUDA), kHostKey(DispatchKey::CPU);

// ---- what is told ------------------------------------------------------------------------------------------------

void (*observer)(const char* kind, const char* what) = nullptr;
std::string failed_assertion;   // of a kernel: the next wait raises it, and every one after
thread_local int depth = 0;     // of our own kernels: what one does inside is not the caller's

struct Inside {
  Inside() { ++depth; }
  ~Inside() { --depth; }
};

void launch(const std::string& name) {
  if (observer && depth == 1) observer("launch", name.c_str());
}

void wait_for(const std::string& what) {
  if (depth > 1) return;
  if (observer) observer("wait", what.c_str());
  if (!failed_assertion.empty())
    throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 710, "CUDA error: device-side assert triggered");
}

// ---- memory ------------------------------------------------------------------------------------------------------

constexpr int64_t kMemory = 512 << 20;  // a program that fills its device, or tries what it can do, is soon done
std::atomic<int64_t> allocated{0}, peak{0};
std::map<const void*, const void*> pinned;  // begin and end of memory of the host
std::mutex pinned_guard;

bool is_pinned(const void* p) {
  std::lock_guard lock(pinned_guard);
  auto next = pinned.upper_bound(p);
  return next != pinned.begin() && p < (--next)->second;
}

template <bool on_device>
struct Memory final : Allocator {
  static void release(void* p) {
    if (on_device) allocated -= malloc_usable_size(p);
    else { std::lock_guard lock(pinned_guard); pinned.erase(p); }
    free(p);
  }
  DataPtr allocate(size_t bytes) override {
    const Device device = on_device ? kDevice : Device(DeviceType::CPU);
    if (!bytes) return {nullptr, device};
    const bool fits = !on_device || static_cast<int64_t>(bytes) <= kMemory - allocated;
    void* p = fits ? aligned_alloc(512, (bytes + 511) / 512 * 512) : nullptr;
    TORCH_CHECK_WITH(OutOfMemoryError, p, "CUDA out of memory. Tried to allocate ", bytes, " bytes.");
    memset(p, 0xFF, bytes);  // NaN and -1: what nobody has written shows
    if (on_device) peak = std::max<int64_t>(peak, allocated += malloc_usable_size(p));
    else { std::lock_guard lock(pinned_guard); pinned[p] = static_cast<char*>(p) + bytes; }
    return {p, p, &release, device};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
Memory<true> device_memory;
Memory<false> pinned_memory;

// ---- the device, and what PyTorch asks about it ------------------------------------------------------------------

struct DeviceGenerator final : c10::GeneratorImpl {  // draws what a CPU's draws from the same seed
  Generator host = at::detail::createCPUGenerator();
  DeviceGenerator() : GeneratorImpl(kDevice, kKey) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  GeneratorImpl* clone_impl() const override {
    auto copy = new DeviceGenerator();
    copy->host = host.clone();
    return copy;
  }
};

const Generator& default_generator() {
  static const Generator generator = make_generator<DeviceGenerator>();
  return generator;
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  using Time = std::chrono::duration<double, std::milli>;
  static inline thread_local StreamId current = 0;
  static inline std::atomic<StreamId> made{0};
  static Stream stream(StreamId id) { return Stream(Stream::UNSAFE, kDevice, id); }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  Stream getStream(Device) const noexcept override { return stream(current); }
  Stream getDefaultStream(Device) const override { return stream(0); }
  Stream getNewStream(Device, int) const override { return stream(++made); }
  Stream exchangeStream(Stream next) const noexcept override { return stream(std::exchange(current, next.id())); }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Time*>(event); }
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override {
    if (!*event) *event = new Time;
    *static_cast<Time*>(*event) = std::chrono::steady_clock::now().time_since_epoch();
  }
  double elapsedTime(void* began, void* ended, const DeviceIndex) const override {
    return (*static_cast<Time*>(ended) - *static_cast<Time*>(began)).count();
  }
  void block(void*, const Stream&) const override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override { wait_for("stream.synchronize"); }
  void synchronizeEvent(void*) const override { wait_for("event.synchronize"); }
  void synchronizeDevice(const DeviceIndex) const override { wait_for("synchronize"); }
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}
};

struct Hooks final : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return kDevice; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<DeviceGenerator>(); }
  void deviceSynchronize(DeviceIndex) const override { wait_for("synchronize"); }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)

// ---- every kernel: the CPU's, on the same memory -----------------------------------------------------------------

Tensor over(const Tensor& t, Device device) {  // the same memory, seen from the device or from the host
  if (!t.has_storage()) return t;
  auto release = [](void* kept) { delete static_cast<Tensor*>(kept); };
  DataPtr data(t.storage().mutable_data(), new Tensor(t), release, device);
  auto* allocator = device.is_cpu() ? c10::GetCPUAllocator() : static_cast<Allocator*>(&device_memory);
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), allocator, true);
  auto out = at::detail::make_tensor<TensorImpl>(std::move(storage), device.is_cpu() ? kHostKey : kKey, t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return out;
}
Tensor on_host(const Tensor& t) { return t.defined() && t.is_cuda() ? over(t, Device(DeviceType::CPU)) : t; }

const std::set<std::string> kIndexing = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
// On a GPU the host has to learn how large the result is, or what it says.
const std::set<std::string> kWaiting = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount",
    "aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive"};
// Not pointwise, and takes a number of the host as an argument all the same.
const std::set<std::string> kTakesNumbers = {"aten::fill_", "aten::masked_fill", "aten::masked_fill_",
    "aten::index_fill_", "aten::where", "aten::floor_divide", "aten::floor_divide_", "aten::linalg_vector_norm"};

// Why a GPU's kernel of this name makes the host wait, or nothing.
std::string why_it_waits(const std::string& name, ArrayRef<IValue> given) {
  if (kWaiting.count(name)) return name;
  if (name == "aten::repeat_interleave" && given.back().isNone()) return name + " without its size";
  if (!kIndexing.count(name)) return "";
  for (const auto& index : given[1].toOptionalTensorVector()) {
    if (!index || !index->defined()) continue;
    if (index->is_cpu() && index->dim()) return name + " by indices of the host";
    const bool filled = given.size() > 3 && given[2].toTensor().numel() == 1 && !given[3].toBool();
    if (index->scalar_type() == kBool && !filled && name != "aten::index")  // whose nonzero is told
      return name + " by a mask";
  }
  return "";
}

void every_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Inside inside;
  AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  const std::string& name = schema.operator_name().name;
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  if (const auto why = why_it_waits(name, ArrayRef<IValue>(*stack).slice(begin)); !why.empty()) wait_for(why);
  launch(name);

  struct Seen { Tensor device, host; const void* data; };
  std::vector<Seen> seen;
  std::string foreign;
  bool ours = false;
  auto to_host = [&](const Tensor& t) -> Tensor {
    if (!t.defined()) return t;
    if (t.is_cuda()) {
      ours = true;
      for (auto& s : seen) if (s.device.is_same(t)) return s.host;
      Tensor host = on_host(t);
      seen.push_back({t, host, host.storage().data()});
      return host;
    }
    if (t.dim()) foreign = c10::str("a tensor of ", t.sizes(), " on ", t.device());
    else if (!op.hasTag(Tag::pointwise) && !kTakesNumbers.count(name)) foreign = "a scalar of the host";
    return t;
  };
  for (size_t i = 0; i < count; ++i) {
    IValue& v = (*stack)[begin + i];
    if (v.isTensor()) v = to_host(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : v.toTensorVector()) list.push_back(to_host(t));
      v = list;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& t : v.toOptionalTensorVector()) list.push_back(t ? std::optional(to_host(*t)) : t);
      v = list;
    } else if (v.isDevice() && v.toDevice().is_cuda()) {
      v = Device(DeviceType::CPU);
      ours = true;
    } else if (v.isGenerator() && v.toGenerator().device().is_cuda()) {
      v = static_cast<DeviceGenerator*>(v.toGenerator().unsafeGetGeneratorImpl())->host;
    } else if (v.isNone() && schema.arguments()[i].name() == "generator") {
      v = static_cast<DeviceGenerator*>(default_generator().unsafeGetGeneratorImpl())->host;
    }
  }
  TORCH_CHECK(foreign.empty() || !ours || kIndexing.count(name), "Expected all tensors to be on the same device: ",
      schema.operator_name(), " was given ", foreign, " beside one on cuda:0");
  op.redispatchBoxed(kHostKey, stack);

  auto to_device = [&](const Tensor& t) -> Tensor {
    if (!t.defined() || !t.is_cpu()) return t;
    for (auto& s : seen) if (s.host.is_same(t)) return s.device;
    return ours ? over(t, kDevice) : t;
  };
  for (auto& s : seen) {  // an output that the kernel gave another size
    if (s.host.storage().data() == s.data && s.host.sizes() == s.device.sizes() &&
        s.host.strides() == s.device.strides()) continue;
    auto* impl = s.device.unsafeGetTensorImpl();
    if (s.host.storage().data() != s.data) impl->set_storage_keep_dtype(over(s.host, kDevice).storage());
    impl->set_sizes_and_strides(s.host.sizes(), s.host.strides(), s.host.storage_offset());
  }
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    IValue& v = (*stack)[i];
    if (v.isTensor()) v = to_device(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : v.toTensorVector()) list.push_back(to_device(t));
      v = list;
    }
  }
}

// ---- what needs its own --------------------------------------------------------------------------------------------

Tensor empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
             std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(size, &device_memory, kKey, dtype.value_or(kFloat), format);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
                     std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &device_memory, kKey, dtype.value_or(kFloat));
}

Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  Inside inside;
  AutoDispatchBelowADInplaceOrView below;
  const bool to = self.is_cuda(), from = src.is_cuda();
  launch(to && from ? "aten::copy_" : "memcpy");
  if (to != from && src.numel()) {
    const bool pinned = is_pinned((to ? src : self).storage().data());
    const auto what = c10::str(from ? "device to host" : "host to device", ", ", src.sizes(), " ", src.dtype());
    if (!non_blocking) wait_for("copy, " + what);
    else if (!pinned) wait_for("copy of memory that is not pinned, " + what);
  }
  on_host(self).copy_(on_host(src));
  return self;
}
Scalar local_scalar_dense(const Tensor& self) {
  wait_for("a number is read");
  Inside inside;
  return at::_local_scalar_dense(on_host(self));
}
void record_stream(Tensor&, Stream) {}
void assert_async(const Tensor& self, std::string_view message) {  // told when the host next waits, as on a GPU
  Inside inside;
  launch("aten::_assert_async");
  if (at::is_nonzero(on_host(self)) || !failed_assertion.empty()) return;
  failed_assertion = message;
  fprintf(stderr, "TensorCompare.cu:112: _assert_async_cuda_kernel: block: [0,0,0], thread: [0,0,0] Assertion `%s` "
          "failed.\n", failed_assertion.c_str());
}

// Products of half-sized operands with sums and results in fp32, which PyTorch has on CUDA alone.
Tensor& addmm_out(const Tensor& self, const Tensor& a, const Tensor& b, ScalarType dtype, const Scalar& beta,
                  const Scalar& alpha, Tensor& out) {
  Inside inside;
  launch("aten::addmm");
  const auto half = a.scalar_type();
  TORCH_CHECK(self.is_cuda() && a.is_cuda() && b.is_cuda(), "Expected all tensors to be on the same device");
  TORCH_CHECK(half == b.scalar_type() && (half == kHalf || half == kBFloat16) && dtype == kFloat &&
      out.scalar_type() == dtype, "out_dtype: ", half, " and ", b.scalar_type(), " to ", dtype, ", ", out.scalar_type());
  auto host = on_host(out);
  at::addmm_out(host, on_host(self).to(dtype), on_host(a).to(dtype), on_host(b).to(dtype), beta, alpha);
  return out;
}
Tensor addmm(const Tensor& self, const Tensor& a, const Tensor& b, ScalarType dtype, const Scalar& beta,
             const Scalar& alpha) {
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(dtype));
  return addmm_out(self, a, b, dtype, beta, alpha, out);
}
Tensor& mm_out(const Tensor& a, const Tensor& b, ScalarType dtype, Tensor& out) {
  return addmm_out(out, a, b, dtype, 0, 1, out);
}
Tensor mm(const Tensor& a, const Tensor& b, ScalarType dtype) {
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(dtype));
  return mm_out(a, b, dtype, out);
}

const int installed = [] {
  c10::SetAllocator(DeviceType::CUDA, &device_memory, 255);
  c10::impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(new Guard());
  return 0;
}();

}  // namespace emulated

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&emulated::every_kernel>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", emulated::empty);
  m.impl("empty_strided", emulated::empty_strided);
  m.impl("copy_", emulated::copy_);
  m.impl("_local_scalar_dense", emulated::local_scalar_dense);
  m.impl("record_stream", emulated::record_stream);
  m.impl("_assert_async.msg", emulated::assert_async);
  m.impl("mm.dtype", emulated::mm);
  m.impl("mm.dtype_out", emulated::mm_out);
  m.impl("addmm.dtype", emulated::addmm);
  m.impl("addmm.dtype_out", emulated::addmm_out);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage", TORCH_FN(at::native::set_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
  m.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  // One kernel on a GPU, where PyTorch's general form is many, or asks for cuDNN.
  for (const char* name : {"convolution", "convolution_backward", "_convolution"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&emulated::every_kernel>());
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames())
    if (op.name.rfind("aten::_foreach_", 0) == 0)
      m.impl(c10::str(op.name.substr(6), op.overload_name.empty() ? "" : ".", op.overload_name).c_str(),
             torch::CppFunction::makeFromBoxedFunction<&emulated::every_kernel>());
}

TORCH_LIBRARY(emulated, m) {
  using namespace emulated;
  m.def("seed(int seed) -> ()", [](int64_t seed) { Generator(default_generator()).set_current_seed(seed); });
  m.def("rng_state() -> Tensor", [] { return default_generator().get_state(); });
  m.def("set_rng_state(Tensor state) -> ()", [](const Tensor& s) { Generator(default_generator()).set_state(s); });
  m.def("launch(str name) -> ()", [](const std::string& name) {
    Inside inside;
    launch(name);
  });
  m.def("wait(str what) -> ()", [](const std::string& what) { wait_for(what); });
  m.def("memory() -> int[]", [] { return std::vector<int64_t>{allocated, peak, kMemory}; });
  m.def("reset_peak() -> ()", [] { peak = allocated.load(); });
}

extern "C" void observe(void (*told)(const char*, const char*)) { emulated::observer = told; }
