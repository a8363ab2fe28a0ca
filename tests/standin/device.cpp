// An accelerator made of main memory: tensors that say "cuda" (or "mps", "xpu") to PyTorch, whose
// kernels are the CPU's, and which are as strict about where a tensor lies as the real one.
//
// For a build of PyTorch for the CPU, where nobody has taken these dispatch keys. A storage "on the
// device" holds a storage on the CPU; every operator without a kernel here goes to `on_host`, which
// checks that its tensors lie together, shows them to the CPU's kernel and takes back what that
// makes. Memory is counted, and has a limit. Copies between host and device, and whatever makes the
// host wait for the device, are told to a Python function.
//
// Hollow, it holds no numbers and computes none (its storages are those of the meta device): what a
// model of any size would take is then known in seconds. Numbers that are asked for are made up.

#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/UnaryOps.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/extension.h>

#include <cstring>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;
using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;

constexpr int DEVICES = 2;

static bool is_ours(DeviceType type) {
  return type == DeviceType::CUDA || type == DeviceType::MPS || type == DeviceType::XPU;
}
static bool is_ours(const Tensor& t) { return t.defined() && is_ours(t.device().type()); }

static bool hollow = false;

// --- memory: counted, with a limit -------------------------------------------------------------

struct Account {
  int64_t now = 0, most = 0, limit = int64_t(1) << 60;
};
static std::mutex accounts_lock;
static Account accounts[DEVICES];

static int64_t rounded(int64_t bytes) { return (bytes + 511) / 512 * 512; }  // as CUDA's allocator

static void check_room(int index, int64_t bytes) {
  const auto& account = accounts[index];
  TORCH_CHECK_WITH(
      OutOfMemoryError, account.now + bytes <= account.limit, "CUDA out of memory. Tried to allocate ",
      bytes, " bytes. GPU ", index, " has a total capacity of ", account.limit, " bytes of which ",
      account.limit - account.now, " bytes are free.");
}

static void take(int index, int64_t bytes) {
  std::lock_guard<std::mutex> hold(accounts_lock);
  check_room(index, bytes);
  auto& account = accounts[index];
  account.now += bytes;
  account.most = std::max(account.most, account.now);
}

struct Held {  // what a storage on the device holds
  c10::Storage host;
  int index;
  int64_t bytes;
};
// CPU storage -> the storage on the device that shows it, to know views again
static std::unordered_map<c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> shown;

static void let_go(void* context) {
  auto* held = static_cast<Held*>(context);
  {
    std::lock_guard<std::mutex> hold(accounts_lock);
    accounts[held->index].now -= held->bytes;
    shown.erase(held->host.unsafeGetStorageImpl());
  }
  delete held;
}

static c10::Storage on_device(const c10::Storage& host, Device device) {
  auto* key = host.unsafeGetStorageImpl();
  {
    std::lock_guard<std::mutex> hold(accounts_lock);
    auto known = shown.find(key);
    if (known != shown.end())
      if (auto strong = known->second.lock()) return c10::Storage(strong);
  }
  const auto bytes = rounded(host.nbytes());
  take(device.index(), bytes);
  auto* held = new Held{host, device.index(), bytes};
  void* place = hollow ? static_cast<void*>(held) : host.mutable_data();
  c10::DataPtr data(place, held, &let_go, device);
  auto made = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), host.nbytes(), std::move(data), nullptr, false);
  std::lock_guard<std::mutex> hold(accounts_lock);
  shown.insert_or_assign(key, c10::weak_intrusive_ptr<c10::StorageImpl>(made));
  return c10::Storage(made);
}

// Main memory that says that it is pinned.
struct Pinned final : public c10::Allocator {
  static inline std::mutex lock;
  static inline std::unordered_set<const void*> places;
  static void free(void* context) {
    {
      std::lock_guard<std::mutex> hold(lock);
      places.erase(context);
    }
    c10::free_cpu(context);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* place = c10::alloc_cpu(bytes);  // touched by nobody if nothing is written
    std::lock_guard<std::mutex> hold(lock);
    if (place != nullptr) places.insert(place);
    return {place, place, &free, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  static bool holds(const void* place) {
    std::lock_guard<std::mutex> hold(lock);
    return places.count(place) > 0;
  }
};
static Pinned pinned;

// --- a tensor as the other side sees it ----------------------------------------------------------

static Tensor shaped_like(const Tensor& t, c10::Storage storage, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return made;
}

static Tensor to_host(const Tensor& t) {
  auto* held = static_cast<Held*>(t.storage().data_ptr().get_context());
  TORCH_INTERNAL_ASSERT(held != nullptr, "a tensor on the stand-in without memory");
  return shaped_like(t, held->host, hollow ? c10::DispatchKey::Meta : c10::DispatchKey::CPU);
}

static c10::DispatchKey key_of(DeviceType type) {
  return c10::computeDispatchKey(std::nullopt, std::nullopt, Device(type, 0));
}

static void check_dtype(c10::ScalarType type, Device device) {
  TORCH_CHECK_TYPE(
      device.type() != DeviceType::MPS || type != at::kDouble,
      "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
      "Please use float32 instead.");
}

static Tensor to_device(const Tensor& t, Device device) {
  check_dtype(t.scalar_type(), device);
  return shaped_like(t, on_device(t.storage(), device), key_of(device.type()));
}

// --- what is told ---------------------------------------------------------------------------------

static py::object* listener = nullptr;
static py::object* imagined = nullptr;  // what a number is, where there is none
static std::mutex counts_lock;
static std::unordered_map<std::string, int64_t> launches;  // operator -> how often

static void tell(const char* kind, const std::string& op, int64_t bytes) {
  if (listener == nullptr) return;
  py::gil_scoped_acquire gil;
  (*listener)(kind, op, bytes);
}

// --- every operator ---------------------------------------------------------------------------------

// Operators whose kernels do not have all tensors checked: 0-dimensional ones may be on the CPU.
static std::unordered_set<std::string> lenient;
// Operators that make the host wait, since what they give depends on the values.
static const std::unordered_set<std::string> waiting = {
    "aten::nonzero", "aten::_local_scalar_dense", "aten::equal", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
    "aten::repeat_interleave.Tensor", "aten::is_nonzero", "aten::_linalg_check_errors",
    "aten::multinomial", "aten::histc"};
// Operators that only look at what is there in another way, and launch nothing.
static const std::unordered_set<std::string> views = {
    "aten::view", "aten::as_strided", "aten::_reshape_alias", "aten::unfold", "aten::alias",
    "aten::detach", "aten::view_as_real", "aten::view_as_complex", "aten::set_.source_Storage"};

struct Swap {
  Tensor host, original;
};

static Tensor swapped(
    const Tensor& t, const std::string& name, const std::string& argument, Device device,
    std::vector<Swap>& swaps) {
  if (!t.defined()) return t;
  if (is_ours(t)) {
    TORCH_CHECK(
        t.device() == device, "Expected all tensors to be on the same device, but got ", argument,
        " is on ", t.device(), ", different from other tensors on ", device, " (", name, ")");
    auto host = to_host(t);
    swaps.push_back({host, t});
    return host;
  }
  const bool alone = t.dim() == 0 && (lenient.count(name) || t.unsafeGetTensorImpl()->is_wrapped_number());
  const bool index = name.find("index") != std::string::npos && argument == "indices" &&
      lenient.count(name);
  TORCH_CHECK(
      alone || index, "Expected all tensors to be on the same device, but got ", argument, " is on ",
      t.device(), ", different from other tensors on ", device, " (", name, ")");
  if (index) tell("h2d", name, t.nbytes());
  return hollow && index ? t.to(at::kMeta) : t;
}

static void put_back(const Swap& swap, Device device) {
  // An operator may have given its output another size, or other memory.
  auto* impl = swap.original.unsafeGetTensorImpl();
  auto* held = static_cast<Held*>(swap.original.storage().data_ptr().get_context());
  const bool same = held->host.unsafeGetStorageImpl() == swap.host.storage().unsafeGetStorageImpl();
  if (same && held->bytes == rounded(swap.host.storage().nbytes()) &&
      swap.host.sizes() == swap.original.sizes() && swap.host.strides() == swap.original.strides())
    return;
  if (!same || held->bytes != rounded(swap.host.storage().nbytes())) {
    {
      std::lock_guard<std::mutex> hold(accounts_lock);
      shown.erase(swap.host.storage().unsafeGetStorageImpl());
    }
    impl->set_storage_keep_dtype(on_device(swap.host.storage(), device));
  }
  impl->set_sizes_and_strides(
      swap.host.sizes(), swap.host.strides(), swap.host.storage_offset());
}

static Tensor taken_back(const Tensor& t, Device device, const std::vector<Swap>& swaps) {
  if (!t.defined() || t.device().type() != (hollow ? DeviceType::Meta : DeviceType::CPU)) return t;
  for (const auto& swap : swaps)
    if (swap.host.unsafeGetTensorImpl() == t.unsafeGetTensorImpl()) return swap.original;
  return to_device(t, device);
}

// Operators that cannot be carried out without numbers; whether this was one.
static bool imagine(const std::string& name, torch::jit::Stack* stack, size_t count) {
  const auto arguments = torch::jit::last(*stack, count);
  IValue result;
  if (name == "aten::_local_scalar_dense") {
    const auto type = arguments[0].toTensor().scalar_type();
    py::gil_scoped_acquire gil;
    const auto value = (*imagined)().cast<double>();
    if (type == at::kBool) result = at::Scalar(value != 0);
    else if (at::isFloatingType(type)) result = at::Scalar(value);
    else result = at::Scalar(static_cast<int64_t>(value));
  } else if (name == "aten::equal") {
    result = true;
  } else if (name == "aten::index.Tensor") {
    const std::optional<Tensor> index = arguments[1].toOptionalTensorList().get(0);
    if (!index || index->scalar_type() != at::kBool) return false;
    auto self = arguments[0].toTensor();  // as if all of it were asked for
    result = at::empty_like(self.flatten(0, index->dim() - 1));
  } else if (name == "aten::_fused_adam_") {
    torch::jit::drop(*stack, count);
    return true;
  } else {
    return false;
  }
  torch::jit::drop(*stack, count);
  torch::jit::push(*stack, result);
  return true;
}

static void on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  auto name = schema.name();
  if (!schema.overload_name().empty()) name += "." + schema.overload_name();
  const auto count = schema.arguments().size();
  auto* arguments = stack->data() + (stack->size() - count);

  std::optional<Device> device;
  auto notice = [&](const Tensor& t) {
    if (is_ours(t) && (!device || device->type() != t.device().type())) device = t.device();
  };
  for (size_t n = 0; n < count; ++n) {
    const auto& value = arguments[n];
    if (value.isTensor()) notice(value.toTensor());
    else if (value.isTensorList()) for (const auto& t : value.toTensorVector()) notice(t);
    else if (value.isOptionalTensorList())
      for (const std::optional<Tensor>& t : value.toOptionalTensorList()) if (t) notice(*t);
    else if (value.isDevice() && is_ours(value.toDevice().type()) && !device)
      device = value.toDevice();
    if (device) break;
  }
  TORCH_INTERNAL_ASSERT(device, name, " has come to the stand-in without a tensor of it");
  if (!device->has_index())
    device = c10::impl::getDeviceGuardImpl(device->type())->getDevice();

  bool waits = waiting.count(name) > 0;
  std::vector<Swap> swaps;
  for (size_t n = 0; n < count; ++n) {
    auto& value = arguments[n];
    const auto& argument = schema.arguments()[n].name();
    if (value.isTensor()) {
      value = swapped(value.toTensor(), name, argument, *device, swaps);
    } else if (value.isTensorList()) {
      auto every = value.toTensorVector();
      for (auto& t : every) t = swapped(t, name, argument, *device, swaps);
      value = IValue(every);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> every;
      for (std::optional<Tensor> t : value.toOptionalTensorList()) {
        if (t && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte)) waits = true;
        every.push_back(t ? std::optional<Tensor>(swapped(*t, name, argument, *device, swaps)) : t);
      }
      value = every;
    } else if (value.isGenerator()) {
      TORCH_CHECK(
          is_ours(value.toGenerator().device().type()), "Expected a '", device->type(),
          "' device type for generator but found '", value.toGenerator().device().type(), "'");
    } else if (value.isDevice()) {
      value = Device(hollow ? DeviceType::Meta : DeviceType::CPU);
    }
  }
  if (waits) tell("wait", name, 0);
  if (!views.count(name)) {
    std::lock_guard<std::mutex> hold(counts_lock);
    launches[name] += 1;
  }
  if (!hollow || !imagine(name, stack, count)) op.callBoxed(stack);

  for (const auto& swap : swaps) put_back(swap, *device);
  auto* results = stack->data() + (stack->size() - schema.returns().size());
  for (size_t n = 0; n < schema.returns().size(); ++n) {
    if (results[n].isTensor()) {
      results[n] = taken_back(results[n].toTensor(), *device, swaps);
    } else if (results[n].isTensorList()) {
      auto every = results[n].toTensorVector();
      for (auto& t : every) t = taken_back(t, *device, swaps);
      results[n] = IValue(every);
    }
  }
}

// --- the few operators that are the device's own --------------------------------------------------

static Device whole(std::optional<Device> device) {
  auto found = device.value_or(Device(DeviceType::CUDA, 0));
  return found.has_index() ? found : c10::impl::getDeviceGuardImpl(found.type())->getDevice();
}

static Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device> device, std::optional<bool> pin) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const auto type = dtype.value_or(at::get_default_dtype_as_scalartype());
  check_room(whole(device).index(), c10::elementSize(type) * c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(size)));
  Tensor host = hollow
      ? Tensor(at::detail::empty_strided_meta(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), type))
      : Tensor(at::detail::empty_strided_cpu(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), type));
  return to_device(host, whole(device));
}

static Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const auto type = dtype.value_or(at::get_default_dtype_as_scalartype());
  check_room(whole(device).index(), c10::elementSize(type) * c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(size)));
  Tensor host = hollow
      ? Tensor(at::detail::empty_meta(C10_AS_INTARRAYREF_SLOW(size), type, format))
      : Tensor(at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(size), type, false, format));
  return to_device(host, whole(device));
}

static Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  const bool here = is_ours(self), there = is_ours(from);
  if (here) check_dtype(self.scalar_type(), self.device());
  if (here && !there) tell(non_blocking ? "h2d-async" : "h2d", "aten::copy_", from.nbytes());
  if (!here && there) tell("d2h", "aten::copy_", self.nbytes());
  if (here && there) {
    TORCH_CHECK(self.device().type() == from.device().type());
    if (self.device() != from.device()) tell("d2d", "aten::copy_", from.nbytes());
    std::lock_guard<std::mutex> hold(counts_lock);
    launches["aten::copy_"] += 1;
  }
  if (hollow) {
    if (!here && self.numel() <= 4096) self.fill_(1);
    else if (!here && !Pinned::holds(self.storage().data())) self.zero_();  // pinned: left untouched
    return self;
  }
  auto target = here ? to_host(self) : self;
  target.copy_(there ? to_host(from) : from);
  return self;
}

static Tensor mm_into(const Tensor& a, const Tensor& b, at::ScalarType out) {  // aten::mm.dtype
  TORCH_CHECK(a.device() == b.device(), "Expected all tensors to be on the same device");
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "input dtypes must be the same");
  TORCH_CHECK(
      out == a.scalar_type() || (out == at::kFloat && (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16)),
      "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  {
    std::lock_guard<std::mutex> hold(counts_lock);
    launches["aten::mm.dtype"] += 1;
  }
  if (hollow) return at::empty({a.size(0), b.size(1)}, a.options().dtype(out));
  return to_device(to_host(a).to(out).mm(to_host(b).to(out)), a.device());
}

static Tensor histc(const Tensor& t, int64_t bins, const at::Scalar& low, const at::Scalar& high) {
  return to_device(to_host(t).to(at::kFloat).histc(bins, low, high).to(t.scalar_type()), t.device());
}

// A fused kernel, as the real device would use; the CPU's own, so that results can be compared.
static Tensor attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
    double dropout, bool causal, std::optional<double> scale, bool grouped) {
  if (q.size(-1) != v.size(-1))
    return std::get<0>(at::_scaled_dot_product_attention_math(
        q, k, v, mask, dropout, causal, std::nullopt, scale, grouped));
  auto spread = [&](const Tensor& t) {
    const auto times = q.size(-3) / t.size(-3);
    return grouped && times > 1 && !hollow ? t.repeat_interleave(times, -3) : t;
  };
  auto bias = mask;
  if (mask && mask->defined() && mask->scalar_type() == at::kBool)
    bias = at::where(
        mask->logical_not(), -std::numeric_limits<double>::infinity(),
        at::scalar_tensor(0.0, q.options()));
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      q, spread(k), spread(v), dropout, causal, bias, scale));
}

// --- the device as PyTorch knows it -----------------------------------------------------------------

template <DeviceType D>
struct Guard final : public c10::impl::NoOpDeviceGuardImpl<D> {
  static thread_local int current;
  Device exchangeDevice(Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(D, current); }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return getStream(stream.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { tell("sync", "Event.synchronize", 0); }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 1.0; }
  void synchronizeStream(const c10::Stream&) const override { tell("sync", "Stream.synchronize", 0); }
  void synchronizeDevice(const c10::DeviceIndex) const override { tell("sync", "synchronize", 0); }
  c10::DeviceCapability getDeviceCapability(Device device) const override {
    auto found = c10::impl::NoOpDeviceGuardImpl<D>::getDeviceCapability(device);
    if (D == DeviceType::MPS) found.capability_data.supported_scalar_types.has_Double = 0;
    return found;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return D == DeviceType::MPS ? 1 : DEVICES; }
};
template <DeviceType D>
thread_local int Guard<D>::current = 0;

static c10::impl::DeviceGuardImplRegistrar cuda_guard(DeviceType::CUDA, new Guard<DeviceType::CUDA>());
static c10::impl::DeviceGuardImplRegistrar mps_guard(DeviceType::MPS, new Guard<DeviceType::MPS>());
static c10::impl::DeviceGuardImplRegistrar xpu_guard(DeviceType::XPU, new Guard<DeviceType::XPU>());

// Which accelerator there is: torch.accelerator and the autograd engine ask PyTorch's hooks. Those
// were made while PyTorch was imported: ours take their place in memory, and give it back.

static std::optional<DeviceType> kind_here;

template <typename Interface, DeviceType D>
struct Hooks : public Interface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isPinnedPtr(const void* place) const override { return Pinned::holds(place); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  c10::DeviceIndex deviceCount() const override { return D == DeviceType::MPS ? 1 : DEVICES; }
};
struct CudaHooks final : public Hooks<at::CUDAHooksInterface, DeviceType::CUDA> {
  bool hasCUDA() const override { return true; }
  c10::DeviceIndex current_device() const override { return Guard<DeviceType::CUDA>::current; }
};
struct XpuHooks final : public Hooks<at::XPUHooksInterface, DeviceType::XPU> {
  bool hasXPU() const override { return true; }
  c10::DeviceIndex current_device() const override { return Guard<DeviceType::XPU>::current; }
};
struct MpsHooks final : public Hooks<at::MPSHooksInterface, DeviceType::MPS> {
  bool hasMPS() const override { return true; }
};

template <typename Ours, typename Interface>
static void exchange(const Interface& theirs, bool ours) {
  static_assert(sizeof(Ours) == sizeof(Interface));
  static char kept[sizeof(Interface)];  // as PyTorch made it
  static bool swapped = false;
  void* place = const_cast<Interface*>(&theirs);
  if (ours && !swapped) {
    std::memcpy(kept, place, sizeof(Interface));
    new (place) Ours();
  } else if (!ours && swapped) {
    std::memcpy(place, kept, sizeof(Interface));
  }
  swapped = ours;
}

static void be(const std::string& name) {  // "" is none
  kind_here = name.empty() ? std::nullopt : std::optional(Device(name).type());
  exchange<CudaHooks>(at::detail::getCUDAHooks(), kind_here == DeviceType::CUDA);
  exchange<XpuHooks>(at::detail::getXPUHooks(), kind_here == DeviceType::XPU);
  exchange<MpsHooks>(at::detail::getMPSHooks(), kind_here == DeviceType::MPS);
}

static int current() {
  if (kind_here == DeviceType::XPU) return Guard<DeviceType::XPU>::current;
  return kind_here == DeviceType::CUDA ? Guard<DeviceType::CUDA>::current : 0;
}
static void set_current(int index) {
  if (kind_here == DeviceType::CUDA) Guard<DeviceType::CUDA>::current = index;
  if (kind_here == DeviceType::XPU) Guard<DeviceType::XPU>::current = index;
}

// What torch.accelerator asks for memory. Storages are made by `on_device`, not by it.
struct Allocator final : public c10::DeviceAllocator {
  c10::DataPtr allocate(size_t) override { TORCH_CHECK(false, "the stand-in allocates no bytes alone"); }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return kind_here.has_value(); }
  void emptyCache(c10::MempoolId_t) override { tell("empty_cache", "empty_cache", 0); }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    std::lock_guard<std::mutex> hold(accounts_lock);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* every : {&stats.allocated_bytes, &stats.reserved_bytes}) {
      (*every)[0].current = accounts[index].now;  // 0: of all pools together
      (*every)[0].peak = accounts[index].most;
    }
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex index) override {
    std::lock_guard<std::mutex> hold(accounts_lock);
    accounts[index].most = accounts[index].now;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    std::lock_guard<std::mutex> hold(accounts_lock);
    return {accounts[index].limit - accounts[index].now, accounts[index].limit};
  }
};
static Allocator allocator;

// What has a kernel of its own on the CPU has one on the device; the rest is made of those, as there.
static void register_all(torch::Library& library, c10::DispatchKey key) {
  auto& dispatcher = c10::Dispatcher::singleton();
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy_);
  library.impl("mm.dtype", &mm_into);
  library.impl("histc", &histc);  // of whole numbers too, which the CPU's does not take
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (name.name.rfind("aten::", 0) != 0 || !op || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
        op->hasKernelForDispatchKey(key))
      continue;
    auto full = name.name.substr(6) + (name.overload_name.empty() ? "" : "." + name.overload_name);
    library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&on_host>());
  }
}

#define ON_DEVICE(KEY)                                                                            \
  TORCH_LIBRARY_IMPL(_, KEY, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>()); } \
  TORCH_LIBRARY_IMPL(aten, KEY, m) { register_all(m, c10::DispatchKey::KEY); }                    \
  TORCH_LIBRARY_IMPL(aten, Autograd##KEY, m) { m.impl("scaled_dot_product_attention", &attention); }
ON_DEVICE(CUDA)
ON_DEVICE(MPS)
ON_DEVICE(XPU)

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  for (auto type : {DeviceType::CUDA, DeviceType::MPS, DeviceType::XPU}) c10::SetAllocator(type, &allocator);
  m.def("be", &be);
  m.def("listen", [](py::object function) { listener = new py::object(std::move(function)); });
  m.def("be_hollow", [](py::object function) { hollow = true; imagined = new py::object(std::move(function)); });
  m.def("lenient", [](const std::vector<std::string>& names) { lenient.insert(names.begin(), names.end()); });
  m.def("memory", [](int index) { return std::make_tuple(accounts[index].now, accounts[index].most, accounts[index].limit); });
  m.def("limit", [](int index, int64_t bytes) { accounts[index].limit = bytes; });
  m.def("reset_peak", [](int index) { accounts[index].most = accounts[index].now; });
  m.def("launches", [] {
    std::lock_guard<std::mutex> hold(counts_lock);
    return launches;
  });
  m.def("forget_launches", [] {
    std::lock_guard<std::mutex> hold(counts_lock);
    launches.clear();
  });
  m.def("current", &current);
  m.def("set_current", &set_current);
  m.attr("devices") = DEVICES;
}
