/**
 * Arrays whose memory changes under them, or is gone.
 */

/** A resizable buffer, which the library of this version of ECMAScript does not declare. */
export const resizable = (byteLength: number, maxByteLength = byteLength) => {
  const buffer: ArrayBuffer = Reflect.construct(ArrayBuffer, [byteLength, { maxByteLength }])
  const resize = (to: number): void => void Reflect.apply(Reflect.get(buffer, "resize"), buffer, [to])
  return { buffer, resize }
}

/** Detaches an array, as if its memory was moved to another thread. */
export const detached = <A extends ArrayBufferView>(array: A): A => {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] })
  return array
}

/** An array that is out of the bounds of its shrunk buffer. */
export const cutOff = <A extends ArrayBufferView>(
  Type: new(buffer: ArrayBuffer, offset: number, length: number) => A
): A => {
  const { buffer, resize } = resizable(64)
  const array = new Type(buffer, 16, 4)
  resize(17)
  return array
}
