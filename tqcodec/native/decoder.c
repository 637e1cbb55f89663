/* Python's way to the decoder in C (decoders/c): files on disk, in memory and behind a function, without
   the interpreter lock.

   A file that does not decode is reported as None or False, without a reason: the caller then has
   tqcodec/format/container.py say what is wrong. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#ifndef _WIN32
#include <errno.h>
#include <unistd.h>
#endif

#include "tqcdec.h"

typedef struct {
    PyObject_HEAD
    Py_buffer data; /* stays while the file is open; none where it is elsewhere */
    int descriptor;
    PyObject *fetch; /* gives bytes by (offset, size); NULL where the file is elsewhere */
    tqc_file *file;
} File;

static void File_dealloc(File *self)
{
    tqc_close(self->file);
    if (self->data.obj) PyBuffer_Release(&self->data);
    Py_XDECREF(self->fetch);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *index_or_none(int64_t index)
{
    return index < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(index);
}

/* (name, dtype or None, shape, coding, index of the tensor it is tied to or None, index of its bundle or None) */
static PyObject *describe(const tqc_tensor *tensor)
{
    PyObject *shape = PyTuple_New(tensor->dimensions);
    if (!shape) return NULL;
    for (unsigned i = 0; i < tensor->dimensions; i++) {
        PyObject *length = PyLong_FromUnsignedLongLong(tensor->shape[i]);
        if (!length) {
            Py_DECREF(shape);
            return NULL;
        }
        PyTuple_SET_ITEM(shape, i, length);
    }
    return Py_BuildValue("s#zNINN", tensor->name, (Py_ssize_t)tensor->name_size, tensor->dtype, shape, tensor->coding,
                         index_or_none(tensor->same_as), index_or_none(tensor->bundle));
}

static PyObject *File_tensors(File *self, PyObject *Py_UNUSED(ignored))
{
    size_t count = tqc_tensor_count(self->file);
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (!list) return NULL;
    for (size_t i = 0; i < count; i++) {
        PyObject *item = describe(tqc_tensor_at(self->file, i));
        if (!item) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

static PyObject *File_metadata(File *self, PyObject *Py_UNUSED(ignored))
{
    size_t count = tqc_metadata_count(self->file);
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (!list) return NULL;
    for (size_t i = 0; i < count; i++) {
        tqc_text text = tqc_metadata_at(self->file, i);
        PyObject *pair =
            Py_BuildValue("s#s#", text.key, (Py_ssize_t)text.key_size, text.value, (Py_ssize_t)text.value_size);
        if (!pair) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, pair);
    }
    return list;
}

typedef struct {
    Py_buffer *views; /* of the buffers that are given */
    void **out;       /* for each tensor of the file, NULL if it is not wanted */
    Py_ssize_t count; /* views that are held */
} Buffers;

static void release(Buffers *buffers)
{
    for (Py_ssize_t i = 0; i < buffers->count; i++) PyBuffer_Release(&buffers->views[i]);
    free(buffers->views);
    free(buffers->out);
}

static int acquire(const tqc_file *file, PyObject *pairs, Buffers *buffers)
{
    Py_ssize_t length = PyList_GET_SIZE(pairs);
    buffers->count = 0;
    buffers->views = malloc((length ? (size_t)length : 1) * sizeof *buffers->views);
    buffers->out = calloc(tqc_tensor_count(file) + 1, sizeof *buffers->out);
    if (!buffers->views || !buffers->out) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_ssize_t index;
        PyObject *object;
        Py_buffer *view = &buffers->views[i];
        if (!PyArg_ParseTuple(PyList_GET_ITEM(pairs, i), "nO", &index, &object)) return 0;
        const tqc_tensor *tensor = index < 0 ? NULL : tqc_tensor_at(file, (size_t)index);
        if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) return 0;
        buffers->count++;
        if (!tensor || (uint64_t)view->len != tensor->bytes) {
            PyErr_SetString(PyExc_ValueError, "a buffer has not the size of its tensor");
            return 0;
        }
        buffers->out[index] = view->buf;
    }
    return 1;
}

/* decode([(index, buffer)]): True if these tensors were decoded; tied ones are left out. MemoryError
   where the machine has not enough. */
static PyObject *File_decode(File *self, PyObject *pairs)
{
    if (!PyList_Check(pairs)) return PyErr_Format(PyExc_TypeError, "a list is needed");
    Buffers buffers;
    if (!acquire(self->file, pairs, &buffers)) {
        release(&buffers);
        return NULL;
    }
    tqc_options options = {.memory_limit = UINT64_MAX}; /* decoded bytes are limited, and that bounds it */
    tqc_verdict verdict = TQC_NO_MEMORY;
    Py_BEGIN_ALLOW_THREADS
    tqc_workspace *workspace = tqc_workspace_open(&options);
    if (workspace) verdict = tqc_decode_each(self->file, workspace, buffers.out, NULL);
    tqc_workspace_close(workspace);
    Py_END_ALLOW_THREADS
    release(&buffers);
    if (verdict == TQC_NO_MEMORY) return PyErr_NoMemory();
    return PyBool_FromLong(verdict == TQC_DECODED);
}

/* record(index): coefficients of a transform-coded tensor as the bytes of int32 (rows, kept columns);
   None if it does not decode. */
static PyObject *File_record(File *self, PyObject *number)
{
    size_t index = PyLong_AsSize_t(number);
    if (index == (size_t)-1 && PyErr_Occurred()) return NULL;
    tqc_options options = {.memory_limit = UINT64_MAX};
    tqc_verdict verdict = TQC_NO_MEMORY;
    tqc_coefficients found = {0};
    PyThreadState *state = PyEval_SaveThread();
    tqc_workspace *workspace = tqc_workspace_open(&options);
    if (workspace) verdict = tqc_decode_coefficients(self->file, index, workspace, &found, NULL);
    PyEval_RestoreThread(state);
    PyObject *result = NULL;
    if (verdict == TQC_DECODED) {
        uint64_t size = found.channels[0] * found.kept * sizeof *found.coefficients;
        result = PyBytes_FromStringAndSize((const char *)found.coefficients, (Py_ssize_t)size);
    } else if (verdict == TQC_NO_MEMORY) {
        PyErr_NoMemory();
    } else {
        result = Py_NewRef(Py_None);
    }
    tqc_workspace_close(workspace);
    return result;
}

static PyMethodDef File_methods[] = {
    {"tensors", (PyCFunction)File_tensors, METH_NOARGS, NULL},
    {"metadata", (PyCFunction)File_metadata, METH_NOARGS, NULL},
    {"decode", (PyCFunction)File_decode, METH_O, NULL},
    {"record", (PyCFunction)File_record, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FileType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tqcodec.native._decoder.File",
    .tp_basicsize = sizeof(File),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)File_dealloc,
    .tp_methods = File_methods,
};

static File *new_file(void)
{
    File *self = PyObject_New(File, &FileType);
    if (self) {
        self->data.obj = NULL;
        self->descriptor = -1;
        self->fetch = NULL;
        self->file = NULL;
    }
    return self;
}

/* The file where it could be opened, else None. */
static PyObject *opened(File *self, tqc_verdict verdict)
{
    if (verdict == TQC_DECODED) return (PyObject *)self;
    Py_DECREF(self);
    if (verdict == TQC_NO_MEMORY) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Decoded bytes are limited by who asks for tensors, and that bounds the memory. */
static const tqc_options UNLIMITED = {.memory_limit = UINT64_MAX, .decoded_limit = UINT64_MAX};

/* open_memory(data): a File, or None if header, directory or tables do not decode. */
static PyObject *open_memory(PyObject *Py_UNUSED(module), PyObject *data)
{
    File *self = new_file();
    if (!self) return NULL;
    if (PyObject_GetBuffer(data, &self->data, PyBUF_SIMPLE)) {
        self->data.obj = NULL;
        Py_DECREF(self);
        return NULL;
    }
    return opened(self, tqc_open_memory(self->data.buf, (size_t)self->data.len, &UNLIMITED, &self->file, NULL));
}

#ifndef _WIN32
static int read_at(void *context, uint64_t offset, void *buffer, size_t size)
{
    const File *self = context;
    char *to = buffer;
    while (size) {
        ssize_t done = pread(self->descriptor, to, size, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return -1;
        to += done;
        offset += (uint64_t)done;
        size -= (size_t)done;
    }
    return 0;
}

/* open_descriptor(descriptor, length): likewise, of a file that stays open; reads share no position. */
static PyObject *open_descriptor(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int descriptor;
    unsigned long long length;
    if (!PyArg_ParseTuple(arguments, "iK", &descriptor, &length)) return NULL;
    File *self = new_file();
    if (!self) return NULL;
    self->descriptor = descriptor;
    tqc_source source = {.read = read_at, .context = self, .length = length};
    return opened(self, tqc_open_source(&source, &UNLIMITED, &self->file, NULL));
}
#endif

/* Bytes from a function of Python; an exception of its own is lost, as it is a read that failed. */
static int fetch_at(void *context, uint64_t offset, void *buffer, size_t size)
{
    const File *self = context;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *bytes = PyObject_CallFunction(self->fetch, "KK", (unsigned long long)offset, (unsigned long long)size);
    int good = bytes && PyBytes_Check(bytes) && (size_t)PyBytes_GET_SIZE(bytes) == size;
    if (good) memcpy(buffer, PyBytes_AS_STRING(bytes), size);
    Py_XDECREF(bytes);
    PyErr_Clear();
    PyGILState_Release(state);
    return good ? 0 : -1;
}

/* open_fetch(function, length): likewise, of a file whose bytes a function gives by (offset, size). */
static PyObject *open_fetch(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *fetch;
    unsigned long long length;
    if (!PyArg_ParseTuple(arguments, "OK", &fetch, &length)) return NULL;
    File *self = new_file();
    if (!self) return NULL;
    self->fetch = Py_NewRef(fetch);
    tqc_source source = {.read = fetch_at, .context = self, .length = length};
    return opened(self, tqc_open_source(&source, &UNLIMITED, &self->file, NULL));
}

static PyMethodDef methods[] = {
    {"open_memory", open_memory, METH_O, NULL},
#ifndef _WIN32
    {"open_descriptor", open_descriptor, METH_VARARGS, NULL},
#endif
    {"open_fetch", open_fetch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_decoder",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__decoder(void)
{
    if (PyType_Ready(&FileType)) return NULL;
    return PyModule_Create(&module);
}
