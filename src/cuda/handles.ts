/**
 * The handles of the driver API as distinct number types, so that swapped arguments of a driver call do not compile. At
 * run time they are plain numbers.
 *
 * @since 0.1.0
 */
declare const brand: unique symbol

/** A number that identifies one kind of driver object. */
type Handle<Name extends string> = number & { readonly [brand]: Name }

/** A device: a small number, not always its index. */
export type CUdevice = Handle<"CUdevice">
export type CUcontext = Handle<"CUcontext">
/** A green context: a share of a device's multiprocessors. */
export type CUgreenCtx = Handle<"CUgreenCtx">
/** A description of what a green context gets. */
export type CUdevResourceDesc = Handle<"CUdevResourceDesc">
export type CUstream = Handle<"CUstream">
export type CUevent = Handle<"CUevent">
export type CUmemoryPool = Handle<"CUmemoryPool">
export type CUlibrary = Handle<"CUlibrary">
export type CUkernel = Handle<"CUkernel">
export type CUgraph = Handle<"CUgraph">
export type CUgraphNode = Handle<"CUgraphNode">
export type CUgraphExec = Handle<"CUgraphExec">
/** An address of device or managed memory. */
export type CUdeviceptr = Handle<"CUdeviceptr">
/** A `CUmemGenericAllocationHandle`: memory without an address. It may be any 64-bit number. */
export type CUmemHandle = bigint
/** An address of host memory. */
export type HostPointer = Handle<"HostPointer">
/** The address of a C function that the driver calls. */
export type CUhostFn = Handle<"CUhostFn">

/** How each kind of handle is passed to C. */
export const handleTypes = {
  CUdevice: "int",
  CUcontext: "uintptr_t",
  CUgreenCtx: "uintptr_t",
  CUdevResourceDesc: "uintptr_t",
  CUstream: "uintptr_t",
  CUevent: "uintptr_t",
  CUmemoryPool: "uintptr_t",
  CUlibrary: "uintptr_t",
  CUkernel: "uintptr_t",
  CUgraph: "uintptr_t",
  CUgraphNode: "uintptr_t",
  CUgraphExec: "uintptr_t",
  CUdeviceptr: "uintptr_t",
  CUmemHandle: "uint64_t",
  HostPointer: "uintptr_t",
  CUhostFn: "uintptr_t"
} as const

/** The address `bytes` bytes after another. */
export const offsetBy = <Pointer extends CUdeviceptr | HostPointer>(pointer: Pointer, bytes: number): Pointer =>
  (pointer + bytes) as Pointer

/** The null handle. As a stream, it is the legacy default stream of the current context. */
export const nullHandle = <Kind extends number>(): Kind => 0 as Kind
